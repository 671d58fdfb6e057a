"""anomalib: the network as its model, its checkpoints as runs."""
