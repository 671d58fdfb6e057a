"""The model: network, what stands around it, and how its residual becomes a map and a score."""
