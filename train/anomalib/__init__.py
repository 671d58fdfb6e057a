"""anomalib: the network as a model of anomalib, and anomalib's checkpoints as runs."""
