"""A deployment as data: what it was made of, what it gave, and whether a model it is made again from is the same."""
