"""Formulas across activations: what is exact although something between two layers is not affine."""
