"""The op records, and what runs them."""
