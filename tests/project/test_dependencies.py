"""Releases of the runtime's dependencies that must not be installed with it."""

import pytest
import tomllib
from packaging.requirements import Requirement

from tests.conftest import ROOT

REFUSED = [
    ("jinja2", "3.1.2", "a template leaves the sandbox by str.format"),
    ("jinja2", "3.1.5", "a template leaves the sandbox by the filter attr"),
    ("onnxruntime", "1.24.0", "weights behind a symbolic link are refused"),
    ("onnxruntime", "1.24.1", "weights behind a symbolic link are refused"),
    ("onnxruntime-gpu", "1.24.1", "weights behind a symbolic link are refused"),
]


@pytest.mark.fault("installation", "releases of dependencies with known faults", now="pip takes others")
@pytest.mark.parametrize(("name", "release", "why"), REFUSED, ids=str)
def test_releases_with_known_faults_are_not_installed(name, release, why):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    asked = [requirement for requirement in map(Requirement, listed) if requirement.name == name]
    assert asked, name
    for requirement in asked:
        assert not requirement.specifier.contains(release), why
