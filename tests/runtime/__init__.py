"""From an artefact to text."""
