"""What is kept for the next start: compiled models, engines and timings, and the sample images."""
