"""A user's model as an object: copied, run and put back without a trace."""
