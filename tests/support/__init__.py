"""Support code of the tests: tiny checkpoints, stand-ins, copies of the project."""
