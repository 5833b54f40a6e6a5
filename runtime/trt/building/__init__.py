"""Building of an artifact's engines."""
