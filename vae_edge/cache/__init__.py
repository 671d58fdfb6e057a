"""Caches for faster starts: compiled models, engines and timings, and the sample images."""
