"""From a checkpoint to an artefact."""
