"""Which regions become one layer: forms, candidates, their cost, the choice."""
