"""Text, log, calls to Prefect's server."""
