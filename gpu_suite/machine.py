"""What the figures of a card were measured on."""

import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clada.benchmark.machine import host
from gpu_suite.build import nvcc_path
from gpu_suite.card import Card

_OPTIONAL = ("onnxruntime-gpu", "tensorrt", "transformers")


def _nvcc_version() -> str:
    text = subprocess.run([nvcc_path(), "--version"], capture_output=True, text=True, check=False).stdout
    return next((line.rsplit(",", 1)[-1].strip() for line in text.splitlines() if "release" in line), "")


def _commit(root: Path) -> str:
    """Of the checkout; empty where git does not know, with a plus where it was changed."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return result.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "torch's CUDA": str(torch.version.cuda), "numpy": np.__version__}
    return found | {name: installed for name in _OPTIONAL if (installed := _version(name))}


def machine(card: Card, root: Path) -> dict[str, Any]:
    """The card, the host, the checkout and the versions."""
    versions = {"driver": card.driver, "nvcc": _nvcc_version(), **_versions()}
    return {"card": asdict(card), "host": host(), "commit": _commit(root), "versions": versions}
