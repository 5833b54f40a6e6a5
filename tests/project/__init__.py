"""Commands, installation, documents and scripts."""
