"""Requests over HTTP, and which URLs may be fetched."""
