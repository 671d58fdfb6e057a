"""From a trained run to bundles: torch to ONNX, to each runtime's format, checked against the trained model."""
