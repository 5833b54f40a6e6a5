"""Measurement of prices, choice of one, and the file of the calibration."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from clada.command_line import _quietly
from clada.contract.dial import DialPoint, effort_of_bytes
from clada.errors import CladaError, UnreachableError
from clada.exporter.calibration.input_pass import Run, decode_each
from clada.exporter.calibration.price_calibration import SHARES, calibrate_price, choose
from clada.exporter.calibration.price_file import CalibratedOn, read_price_calibration, write_price_calibration
from clada.exporter.calibration.rows import CalibrationRows
from clada.exporter.model.hashes import model_hash, tensors_hash
from clada.exporter.model.products import find_products
from clada.exporter.price_export import take_inputs
from clada.exporter.progress import tracked
from tests.exporter.test_input_probes import probe
from tests.support.checkpoints import random_model

VOCABULARY, PROMPT = 64, 8
ROWS = torch.randint(1, VOCABULARY, (6, 40), generator=torch.Generator().manual_seed(3))
FURTHER = torch.randint(1, VOCABULARY, (8, 40), generator=torch.Generator().manual_seed(4))
GOAL = 0.65


@pytest.fixture(scope="module")
def measured():
    """A model, its products and their measurements."""
    model = random_model("llama", vocab_size=VOCABULARY)
    products = find_products(model)
    return model, products, calibrate_price(model, products, CalibrationRows(ROWS, FURTHER), PROMPT, [GOAL])


def load_of(calibration, decoded) -> np.ndarray:
    """The load f64[N, T], by the formula of the contract."""
    load_map = calibration.load_map
    load = np.zeros(decoded.surprisal.shape)
    for weight, knots, values in (
        (load_map.surprisal_weight, load_map.surprisal_knots, decoded.surprisal),
        (1 - load_map.surprisal_weight, load_map.entropy_knots, decoded.entropy),
    ):
        load += weight * np.interp(values.double().numpy(), knots.double().numpy(), np.linspace(0, 1, len(knots)))
    return load


def steering(calibration, decoded) -> dict:
    """Values that steer a run's scale: the load's map, and the anticipations."""
    load, knots = load_of(calibration, decoded), calibration.load_map.scale_knots.double().numpy()
    scale = torch.from_numpy(np.interp(load, np.linspace(0, 1, len(knots)), knots)).float()
    return {
        "scale": scale,
        "anticipations": calibration.anticipations,
        "load": torch.from_numpy(load).float(),
    }


@pytest.mark.parametrize("share", [0.8, GOAL, 0.5])
def test_the_price_chosen_reads_the_share(measured, share):
    """Decoded with the thresholds chosen and the load that the text itself gives."""
    model, products, calibration = measured
    choice = choose(calibration, share)
    (flat,) = decode_each(model, products, [Run(choice.thresholds)], ROWS, PROMPT)
    run = Run(choice.thresholds, **steering(calibration, flat))
    (decoded,) = decode_each(model, products, [run], ROWS, PROMPT)
    assert float(decoded.read.mean()) == pytest.approx(share, abs=0.015)
    assert float(decoded.divergence.mean()) == pytest.approx(choice.chosen.divergence_nats, rel=0.35)
    weights = [product.weights for product in products]
    assert np.average(choice.kept, weights=weights) == pytest.approx(share, abs=0.01)


def test_every_price_is_a_point_of_the_dial(measured):
    *_, calibration = measured
    choice = choose(calibration, GOAL)
    efforts, shares, costs = (
        [getattr(point, name) for point in choice.dial] for name in ("effort", "bytes", "divergence_nats")
    )
    assert efforts[0] == 0
    assert 1 in efforts
    assert efforts == sorted(efforts)
    assert shares == sorted(shares, reverse=True)
    assert costs == sorted(costs)
    assert len(efforts) >= len(SHARES) + 1
    # Thresholds go with the root of the price, and with the effort.
    tighter = choose(calibration, 0.5)
    effort = effort_of_bytes(0.5, choice.dial)
    for ours, theirs in zip(choice.thresholds, tighter.thresholds, strict=True):
        torch.testing.assert_close(ours * effort, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("share", [0.2, 0.0001])
def test_shares_below_the_usual_ones_are_measured_where_asked_for(measured, share):
    model, products, calibration = measured
    with pytest.raises(UnreachableError, match="no price that was measured reads"):
        choose(calibration, share)
    if share > 0.1:
        wider = calibrate_price(model, products, CalibrationRows(ROWS[:2], FURTHER), PROMPT, [share], load=False)
        assert choose(wider, share).chosen.bytes == share


def test_a_model_that_reads_less_by_itself_is_refused(measured):
    *_, calibration = measured
    rungs = [dataclasses.replace(rung, read=rung.read / 2) for rung in calibration.rungs]
    with pytest.raises(UnreachableError, match="the lowest reads 50"):
        choose(dataclasses.replace(calibration, rungs=rungs), 0.6)


def test_the_load_saves_what_it_says_on_rows_it_was_not_fitted_on(measured):
    *_, calibration = measured
    assert 0 <= calibration.gains["load"] < 1
    knots = calibration.load_map.scale_knots
    assert (knots.diff() <= 0).all()


def with_probes(calibration, products):
    """The calibration with two probes of random weights, whatever was fitted."""
    probes = [probe(site, products[site].inputs) for site in (4, len(products) - 1)]
    return dataclasses.replace(calibration, anticipations=probes, explained=[0.25, 0.5])


@pytest.fixture
def file(measured, tmp_path):
    model, products, calibration = measured
    calibration = with_probes(calibration, products)
    path = tmp_path / "model.calibration.safetensors"
    write_price_calibration(path, calibration, CalibratedOn(model_hash(model), "some.txt", "ab" * 32, ""))
    return path


def test_a_file_gives_what_was_measured(measured, file):
    model, products, calibration = measured
    read, of = read_price_calibration(file, products)
    assert (of.model, of.data) == (model_hash(model), "some.txt")
    for share in (0.8, 0.5):
        ours, theirs = choose(calibration, share), choose(read, share)
        assert (ours.price, ours.dial, ours.kept) == (theirs.price, theirs.dial, theirs.kept)
        for one, other in zip(ours.thresholds, theirs.thresholds, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert read.explained == [0.25, 0.5]
    for ours, theirs in zip(read.anticipations, with_probes(calibration, products).anticipations, strict=True):
        assert ours.site == theirs.site
        torch.testing.assert_close(ours.tensors(), theirs.tensors(), rtol=0, atol=0)
    taken = take_inputs(model, file, 0.5, None, False, None, file.parent / "rounded", lambda _: None)
    assert (taken.section.data, taken.section.data_sha256) == ("some.txt", "ab" * 32)


def test_a_file_of_another_model_is_refused(file):
    with pytest.raises(CladaError, match="of another model: its weights are not"):
        take_inputs(
            random_model("llama", vocab_size=VOCABULARY, initializer_range=0.2),
            file,
            0.5,
            None,
            False,
            None,
            file.parent / "rounded",
            print,
        )
    for other in (random_model("llama", vocab_size=VOCABULARY + 8), random_model("opt", vocab_size=VOCABULARY)):
        with pytest.raises(CladaError, match="of another model: its products are not"):
            take_inputs(other, file, 0.5, None, False, None, file.parent / "rounded", print)


def test_a_damaged_file_is_refused(measured, file):
    _, products, _ = measured
    whole = file.read_bytes()
    for at in np.random.default_rng(0).integers(len(whole), size=40):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CladaError):
            read_price_calibration(file, products)
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CladaError, match="is no calibration file"):
            read_price_calibration(file, products)


def rewritten(file, change):
    """The file as who wrote it could have written it: changed, with a hash that fits."""
    with safetensors.safe_open(file, "pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    values = json.loads(metadata["values"])
    change(values, tensors)
    metadata["values"] = json.dumps(values)
    metadata["content"] = tensors_hash(metadata["values"], tensors)
    file.write_bytes(safetensors.torch.save(tensors, metadata))


WRONG = {
    "a key less": lambda values, _: values.pop("rungs"),
    "no rungs": lambda values, _: values.update(rungs=[]),
    "rungs that do not fall": lambda values, _: values["rungs"][1].update(read=1.5),
    "rungs of other products": lambda values, _: values["rungs"][1]["kept"].pop(),
    "a text for a number": lambda values, _: values.update(tokens="many"),
    "a tensor less": lambda _, tensors: tensors.pop("factor.3"),
    "a tensor of another size": lambda _, tensors: tensors.update({"counts.0": torch.zeros(3, dtype=torch.float64)}),
    "a factor of NaN": lambda _, tensors: tensors["factor.0"].fill_(float("nan")),
    "probes that do not rise": lambda values, _: values["probes"].reverse(),
    "a probe of no product": lambda values, _: values["probes"][1].update(product=99),
    "a probe less": lambda _, tensors: tensors.pop("anticipation.4.bias"),
    "a probe of another size": lambda _, tensors: tensors.update({"anticipation.4.weight": torch.zeros(3)}),
    "a probe of NaN": lambda _, tensors: tensors["anticipation.4.weight"].fill_(float("nan")),
    "knots that fall": lambda _, tensors: tensors.update({"anticipation.4.knots": torch.linspace(1, 0, 9)}),
    "factors that rise": lambda _, tensors: tensors.update({"anticipation.4.factors": torch.linspace(1, 2, 9)}),
    "a factor of 0": lambda _, tensors: tensors["anticipation.4.factors"][-1:].fill_(0),
    "a negative scale": lambda _, tensors: tensors["scale_knots"].fill_(-1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_makes_no_sense_is_refused(measured, file, wrong):
    rewritten(file, lambda *_: None)
    read_price_calibration(file, measured[1])
    rewritten(file, WRONG[wrong])
    with pytest.raises(CladaError, match="is no calibration file that clada wrote"):
        read_price_calibration(file, measured[1])


def test_the_dial_goes_along_straight_lines():
    dial = [DialPoint(0.0, 0.98, 0.0, 1.0), DialPoint(1.0, 0.6, 0.1, 0.9), DialPoint(2.0, 0.4, 0.3, 0.8)]
    assert effort_of_bytes(1, dial) == 0
    assert effort_of_bytes(0.79, dial) == pytest.approx(0.5)
    assert effort_of_bytes(0.6, dial) == pytest.approx(1)
    assert effort_of_bytes(0.45, dial) == pytest.approx(1.75)
    assert effort_of_bytes(0.99, dial) == 0
    with pytest.raises(CladaError, match=r"calibrated for 0\.4 to 1"):
        effort_of_bytes(0.39, dial)


def test_progress_is_told_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("clada.exporter.progress.time.monotonic", lambda: float(next(clock)))
    with _quietly():
        assert list(tracked(list("abcdef"), "letters")) == list("abcdef")
    assert capsys.readouterr().err == ""
    assert list(tracked(list("abcdef"), "letters")) == list("abcdef")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  letters: 2 of 6, about 24 s left", "  letters: 5 of 6, about 5 s left"]
