"""Everything that reads Python source and bytecode of the user."""
