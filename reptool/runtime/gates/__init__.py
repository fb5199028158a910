"""Gates: the calls in which a layer that stands for a region may run."""
