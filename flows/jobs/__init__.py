"""The job spec: fields, checks, loading, planning."""
