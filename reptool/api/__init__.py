"""What users call: the phases of `deploy` and `explain` in order, and what is accepted from the caller."""
