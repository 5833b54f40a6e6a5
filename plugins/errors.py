"""The one exception a user is meant to read."""


class CladaError(ValueError):
    """A mistake in what was given, in one line: what is wrong, with what value, what to do."""
