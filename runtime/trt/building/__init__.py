"""Engines made of an artefact."""
