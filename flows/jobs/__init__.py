"""The job spec: parse, check, load, plan."""
