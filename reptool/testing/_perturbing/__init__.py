"""The parts of `reptool.testing.perturb`: what can be changed, how it is undone, and what has to agree afterwards."""
