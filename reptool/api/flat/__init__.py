"""The whole model as one graph: flattening, and rewrites of what was flattened."""
