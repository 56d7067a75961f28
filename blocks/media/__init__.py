"""Media files, read with PyAV."""
