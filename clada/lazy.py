"""Names of a package, imported when they are first used: help needs no ONNX Runtime, and the runtime no torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package.

    Args:
        package: Its name.
        homes: The module of each name.
    """

    def getattr_of_package(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    def dir_of_package() -> list[str]:
        return sorted({*vars(import_module(package)), *homes})

    return getattr_of_package, dir_of_package
