"""Benchmarks: how fast, how large and how right a bundle is on this machine, measured in processes of their own."""
