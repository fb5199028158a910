"""The intermediate representation: the trace with its calls and settings, nodes, operations, aliasing."""
