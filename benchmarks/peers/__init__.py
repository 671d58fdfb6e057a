"""Other tools with the same weights on the same images, side by side: `python -m vae_edge.benchmarks.peers`."""
