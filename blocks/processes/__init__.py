"""Subprocesses that leave nothing behind."""
