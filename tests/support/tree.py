"""The files of the packages in this checkout, behind the links of clada/ too."""

from pathlib import Path

from tests.conftest import ROOT


def package_files(package: str) -> dict[str, Path]:
    """Python files of a package by their path in it as it is imported, such as clada/runtime/session.py."""
    found = {}
    for folder in (ROOT / package, *(path for path in (ROOT / package).iterdir() if path.is_symlink())):
        for path in sorted(folder.resolve().rglob("*.py")):
            found[str(folder.relative_to(ROOT) / path.relative_to(folder.resolve()))] = path
    return found
