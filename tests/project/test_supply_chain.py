"""Lock, bill of materials, notices and SECURITY.md: compared with what is installed, shipped and tested."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BILL = json.loads((ROOT / "clada.cdx.json").read_text(encoding="utf-8"))
NOTICES, SECURITY = (ROOT / name for name in ("THIRD-PARTY-NOTICES.md", "SECURITY.md"))
LOCKED = (ROOT / "locked.txt").read_text(encoding="utf-8")
# What the Makefile installs where a machine has no nvcc, of the release of the headers.
NVCC = ("nvidia-cuda-nvcc", "nvidia-nvvm")


def pins(text: str) -> dict[str, str]:
    """Releases by the packages' names as indexes write them."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_the_lock_is_of_what_is_pinned():
    """`make lock` writes it anew."""
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    pinned["torch"] += "+cpu"
    locked = pins(LOCKED)
    assert {name: locked.pop(name) for name in NVCC} == dict.fromkeys(NVCC, pinned["nvidia-cuda-crt"])
    assert locked == pinned


def test_each_package_of_the_lock_has_hashes_and_no_host():
    entries = re.split(r"(?m)^(?=[\w.-]+==)", LOCKED)[1:]
    assert len(entries) == len(pins(LOCKED))
    for entry in entries:
        first, *rest = entry.strip().splitlines()
        assert rest, first
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line) for line in rest), first
    assert "://" not in LOCKED
    assert "\n--" not in LOCKED


def commands(*arguments: str) -> list[str]:
    """Commands of pip that make would run to install all, from nothing."""
    call = ["make", "--dry-run", "VENV=build/absent", *arguments, "build/absent/dependencies.stamp"]
    result = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in result.stdout.splitlines() if "pip --disable-pip-version-check install" in line]


def test_locked_installs_by_hash_and_fetches_nothing_else():
    installed = commands("LOCKED=1")
    by_hash = [line for line in installed if "--require-hashes" in line]
    assert by_hash == installed[:2]
    assert by_hash[1].endswith("--no-deps --no-build-isolation --require-hashes --requirement locked.txt")
    assert len(installed) > 4
    for line in installed[2:]:
        assert (
            line.count(" install ") == line.count("--no-index") or "--no-deps --no-build-isolation --editable" in line
        )
    assert not [line for line in commands() if "--require-hashes" in line or "--no-index" in line]


def test_the_bill_requires_what_the_wheel_requires():
    wanted = {}
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        wanted[requirement.name] = requirement.specifier
    assert BILL["specVersion"] == "1.6"
    for component in BILL["components"]:
        (given,) = [item["value"] for item in component["properties"] if item["name"] == "clada:requires"]
        assert wanted.pop(component["name"]) == Requirement(f"x{given}").specifier
        assert component["purl"] == component["bom-ref"] == f"pkg:pypi/{component['name']}"
    assert not wanted


def bundled() -> list[dict[str, object]]:
    return BILL["metadata"]["component"]["components"]


def test_the_bill_is_of_this_release_and_whole():
    ours = BILL["metadata"]["component"]
    assert (ours["name"], ours["version"]) == (PROJECT["name"], PROJECT["version"])
    assert ours["purl"] == ours["bom-ref"] == f"pkg:pypi/clada@{PROJECT['version']}"
    assert ours["licenses"] == [{"license": {"id": PROJECT["license"]}}]
    (edges,) = BILL["dependencies"]
    parts = [*bundled(), *BILL["components"]]
    assert edges == {"ref": ours["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}


def test_what_is_bundled_is_in_the_notices_with_its_license():
    notices = NOTICES.read_text(encoding="utf-8")
    for part in bundled():
        (license_,) = part["licenses"]
        (place,) = part["evidence"]["occurrences"]
        assert Path(place["location"]).name in notices
        assert license_["license"]["id"] in notices
    for name in re.findall(r"`([\w/-]+\.(?:jsonl|txt))`", notices):
        assert (ROOT / name).is_file(), name
    assert {"LICENSE", NOTICES.name, "exporter/data/LICENSE-PSF.txt"} == set(PROJECT["license-files"])


def test_security_names_tests_that_exist():
    text = SECURITY.read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert len(named) > 6
    assert not [name for name in named if not (ROOT / name).is_file()]
    for name in re.findall(r"`(\w[\w.-]*\.(?:txt|toml|md|json))`", text):
        assert (ROOT / name).is_file() or name == "clada.json", name


@pytest.mark.parametrize("page", [SECURITY, NOTICES], ids=lambda page: page.name)
def test_nobody_is_named_who_may_not_be_there(page):
    """Reports go to the repository, not to an address that somebody made up."""
    assert not re.search(r"[\w.]+@[\w.]+\.\w+", page.read_text(encoding="utf-8"))
