"""The small graph that everything works on: calls, nodes, operations, aliasing."""
