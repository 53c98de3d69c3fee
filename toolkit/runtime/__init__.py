"""An ONNX graph on a device: sessions, providers, precisions."""
