"""From a fitted model to its ONNX graph, and the proof that the two answer alike."""
