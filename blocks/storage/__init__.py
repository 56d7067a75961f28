"""Where files and records lie, and atomic writes."""
