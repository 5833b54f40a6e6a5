"""The tiny artifacts that tests share: what changes with the load is seen in them."""

import json

import pytest


@pytest.mark.parametrize("name", ["tiny_artifact", "tiny_half_artifact", "inputs_artifact"])
def test_the_load_changes_the_thresholds(request, name):
    manifest = request.getfixturevalue(name).with_name("clada.json")
    calibration = json.loads(manifest.read_text())["calibration"]
    assert calibration["scale_knots"][0] > 1.2 * calibration["scale_knots"][-1]
    assert 0 < calibration["surprisal_weight"] < 1
