"""Code generation: the one method in which a fused operation occurs is written anew."""
