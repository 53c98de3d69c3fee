"""ONNX graphs read, checked, cut and joined."""
