"""How chunks become one film: one block per file."""
