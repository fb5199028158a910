"""Reading the source and bytecode of the user's Python code: names, walks, calls, globals, lines."""
