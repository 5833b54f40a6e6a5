"""Conversations: the model's template, bounded, and the `chat` command's loop."""
