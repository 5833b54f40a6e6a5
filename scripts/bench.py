"""`clada bench` under the name of a script: the measurements are in `clada/benchmark/`."""

import sys

from clada.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
