"""What tests stand on: tiny checkpoints, stand-ins, copies of the project."""
