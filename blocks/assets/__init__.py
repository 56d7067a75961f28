"""A job's input files."""
