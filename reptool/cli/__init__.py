"""The command line: `reptool`, or `python -m reptool`. Exit codes: 0 it is so, 1 it is not, 2 it could not be done."""
