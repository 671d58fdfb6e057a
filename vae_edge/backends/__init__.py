"""One backend for each runtime; `vae_edge.backends.base` holds what they share."""
