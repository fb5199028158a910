"""Safety: methods, arguments, settings and walks over modules that reach what a surgery changes."""
