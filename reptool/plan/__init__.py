"""Planning: the forms of each value, the candidate regions, their cost, and the choice of regions."""
