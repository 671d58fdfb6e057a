"""Training one network: settings, batches, Lightning's loop, checkpoints."""
