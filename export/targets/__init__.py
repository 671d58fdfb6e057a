"""One module for each target: how its model files are written, quantized and, if it cannot run here, simulated."""
