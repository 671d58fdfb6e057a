"""The model: network, how an image becomes its input, and how its residual becomes a map and a score."""
