"""Other tools with the same weights on the same images, and what the Detector adds to the bare runtimes."""
