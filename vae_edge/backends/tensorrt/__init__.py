"""From ONNX to a TensorRT engine that runs here; `tensorrt_backend` runs it."""
