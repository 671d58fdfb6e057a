"""One module a target: how its model files are written, quantized and, where it cannot run, simulated."""
