"""From a trained run to bundles: torch to ONNX, then OpenVINO and TensorRT, with parity checks."""
