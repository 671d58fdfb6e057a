"""Other tools with the same weights on the same images, and the overhead of the Detector over the bare runtimes."""
