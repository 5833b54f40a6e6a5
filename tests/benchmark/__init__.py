"""What it saves."""
