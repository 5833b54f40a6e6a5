"""Prints the requirements of clada and some of its extras, a line each: pip installs those only along with a package.

Usage: requirements.py [EXTRA ...]
"""

import re
import sys
from pathlib import Path

import tomllib

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
OWN = re.compile(r"clada\[([\w, -]+)\]")


def requirements(extras: list[str]) -> list[str]:
    """Requirements of the package and of these extras, and of the extras that those name; sorted, without repeats."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    found, wanted = set(project["dependencies"]), list(extras)
    for extra in wanted:
        for line in project["optional-dependencies"][extra]:
            if own := OWN.fullmatch(line):
                wanted += [name.strip() for name in own[1].split(",")]
            else:
                found.add(line)
    return sorted(found)


if __name__ == "__main__":
    print(*requirements(sys.argv[1:]), sep="\n")
