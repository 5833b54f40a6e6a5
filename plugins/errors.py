"""The one exception a user is meant to read, and the exit code it becomes."""

import os
import sys
from collections.abc import Callable


class CladaError(ValueError):
    """A mistake in what was given, in one line: what is wrong, with what value, what to do."""


class UnreachableError(CladaError):
    """What was asked for is beyond what a policy can do on a model."""


def exit_code(command: Callable[[], None]) -> int:
    """Run a command: 0 when it ends well, 1 with the mistake on stderr, 130 when interrupted, 141 when nobody reads."""
    try:
        command()
    except CladaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone, as with `| head`: Python must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0
