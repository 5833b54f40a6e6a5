"""Exceptions meant for the user."""


class CladaError(ValueError):
    """User error in one line: the problem, the value, and the remedy."""


class UnreachableError(CladaError):
    """Goal that a policy cannot reach on a model."""
