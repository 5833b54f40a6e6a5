"""The exceptions a user is meant to read."""


class CladaError(ValueError):
    """A mistake in what was given, in one line: what is wrong, with what value, what to do."""


class UnreachableError(CladaError):
    """What was asked for is beyond what a policy can do on a model."""
