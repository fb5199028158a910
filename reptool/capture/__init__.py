"""One run of the model's own code on symbolic values, written down as a graph."""
