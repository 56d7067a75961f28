"""What a worker does with one chunk."""
