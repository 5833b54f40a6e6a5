"""Check of a number of threads."""

import os

from clada.errors import CladaError

# All of them are started. More than the processors is slow, and far more never what was meant.
MOST_THREADS = 8 * (os.cpu_count() or 1)


def check_threads(threads: int) -> None:
    """Raise CladaError for an invalid number of threads, or one far above the machine's processors."""
    if not 0 <= threads <= MOST_THREADS:
        raise CladaError(
            f"threads is {threads}; it must be 0 (as many as there are processors), or from 1 to "
            f"{MOST_THREADS}: this machine has {os.cpu_count()} processors"
        )
