"""Benchmarks: how fast, how large and how accurate a bundle is on this machine, measured in separate processes."""
