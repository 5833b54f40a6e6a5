"""How many threads make sense."""

import os

from clada.plugins.errors import CladaError

# More than the processors is slow, and never what was meant by far more.
_A_PROCESSOR = 8


def check_threads(threads: int) -> None:
    """Raise CladaError for a number of threads that is none, or far more than the machine has processors."""
    processors = os.cpu_count() or 1
    if not 0 <= threads <= _A_PROCESSOR * processors:
        raise CladaError(
            f"threads is {threads}; it must be 0 (as many as there are processors), or from 1 to "
            f"{_A_PROCESSOR * processors}: this machine has {processors} processors"
        )
