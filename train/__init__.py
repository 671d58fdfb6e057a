"""Training: data, network, fitting and metrics. What runs on a device lives in `vae_edge` and needs nothing of this."""
