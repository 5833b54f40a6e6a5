"""Tests of the commands, the installation, the documents and the scripts."""
