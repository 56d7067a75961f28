"""Text, log, calls to Prefect, cancellation."""
