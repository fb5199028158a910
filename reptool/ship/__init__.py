"""Files: deployed models and checkpoints, saved and loaded without executing anything that a file holds."""
