"""Building of an artefact's engines."""
