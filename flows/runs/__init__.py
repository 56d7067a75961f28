"""Flow runs: names, clean-up, progress, report."""
