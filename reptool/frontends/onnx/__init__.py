"""ONNX graphs as what the planner reads: the operators of a file as functions of torch."""
