"""The release of clada that is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("clada")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"
