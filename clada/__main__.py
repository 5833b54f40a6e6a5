"""`python -m clada` is the `clada` command."""

import sys

from clada.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
