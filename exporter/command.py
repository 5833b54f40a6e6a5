"""Entry point of `clada-export`: says what to install where the exporter's libraries are missing."""

import sys


def main() -> int:
    """Run the command; returns the exit code."""
    try:
        from clada.exporter.cli import main as run
    except ModuleNotFoundError as error:
        print(f"error: clada-export needs {error.name}: pip install 'clada[export]'", file=sys.stderr)
        return 1
    return run()
