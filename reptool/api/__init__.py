"""The public entry points: the phases of `deploy` and `explain` in order, and the checks of their arguments."""
