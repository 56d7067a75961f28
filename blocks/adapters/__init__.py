"""Where a command runs: one block per file."""
