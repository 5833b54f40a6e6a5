"""Probes where inputs are skipped: their fit, how they steer a pass, and that verification detects errors in them."""

import numpy as np
import pytest
import torch

from clada.exporter.calibration.decode_pass import Decoded
from clada.exporter.calibration.input_pass import Run, decode_each
from clada.exporter.calibration.input_probes import fit_foresight, probed_products, read_densely
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import first_step, next_step
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.products import find_products
from clada.exporter.model.sparse_products import row_shares, sparsify_products
from clada.exporter.verify import scale_of_load
from tests.exporter.test_trace import LOAD_MAP
from tests.support.checkpoints import LAYERS, VOCABULARY, random_model

PRODUCTS, PROMPT = 4 * LAYERS + 1, 6
FACTORS = (0.5, 1.0, 2.0)
ROWS = torch.randint(1, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(2))
seeds = pytest.mark.parametrize("seed", range(3))


def probe(site: int, width: int, seed: int = 0) -> Anticipation:
    """One of random weights."""
    generator = torch.Generator().manual_seed(seed + site)
    weight = torch.randn(width, generator=generator) / width**0.5
    knots, factors = torch.linspace(-1, 1, 9), torch.linspace(2.0, 0.5, 9)
    return Anticipation(site, weight, torch.tensor(-0.7), torch.tensor(0.2), knots, factors)


@pytest.mark.parametrize(("layers", "sites"), [(24, [16, 32, 48, 64, 80, 96]), (3, [0, 4, 8, 12]), (1, [0, 4])])
def test_probes_are_at_the_first_products_of_layers_and_at_the_last(layers, sites):
    assert probed_products(find_products(random_model("llama", num_hidden_layers=layers))) == sites


def test_a_pass_is_what_the_module_decodes_token_by_token():
    """Two probes, the second at the output matrix; each is on top of the load's scale, and not of the other's."""
    model = random_model("llama")
    products = find_products(model)
    generator = torch.Generator().manual_seed(1)
    thresholds = [torch.rand(product.inputs, generator=generator) * 0.3 for product in products]
    probes = [probe(site, products[site].inputs) for site in (4, PRODUCTS - 1)]
    patched = random_model("llama")
    sparsify_products(patched, find_products(patched))
    calibrated = Calibrated(
        tuple(thresholds), anticipations=tuple(probes), load_map=LOAD_MAP, row_share=row_shares(products)
    )
    decoder, values = Decoder(patched, calibrated), calibrated.tensors()
    for row in ROWS:
        step = first_step(patched, row[None, :PROMPT], torch.ones(1, PROMPT, dtype=torch.int64))
        loads, active, scales = [], [], []
        with torch.no_grad():
            logits, present, *_ = decoder(**step, **values)
            for token in row[PROMPT:]:
                step = next_step(step, token.reshape(1, 1), logits, present)
                logits, present, _, load, _, _, kept, _ = decoder(**step, **values)
                loads.append(load)
                active.append(kept[:, 0])
                scales.append(scale_of_load(load, LOAD_MAP.scale_knots))
        load, scale = torch.stack(loads, -1), torch.stack(scales, -1)
        run = Run(thresholds, scale, probes, load)
        (decoded,) = decode_each(model, products, [run], row[None], PROMPT)
        widths = torch.tensor([product.inputs for product in products])
        torch.testing.assert_close(decoded.active[0] * widths, torch.stack(active).float(), rtol=0, atol=1.01)
        assert (decoded.active[0] * widths - torch.stack(active)).abs().sum() <= 3
        # And the probes matter, each from its product on.
        (without,) = decode_each(model, products, [Run(thresholds, scale)], row[None], PROMPT)
        differs = (decoded.active[0] != without.active[0]).any(0)
        assert not differs[:4].any()
        assert differs[4:].all()


def test_dense_reading_gives_the_entropies_of_the_model_and_the_inputs_of_its_products():
    model = random_model("llama")
    products = find_products(model)
    inputs, entropy = read_densely(model, products, [4, PRODUCTS - 1], ROWS, PROMPT)
    with torch.no_grad():
        outputs = model(ROWS, output_hidden_states=True)
    probabilities = outputs.logits[:, PROMPT:].double().softmax(-1)
    torch.testing.assert_close(entropy, -(probabilities * probabilities.log()).sum(-1), rtol=1e-5, atol=0)
    normed = model.model.layers[1].input_layernorm(outputs.hidden_states[1])[:, PROMPT:]
    torch.testing.assert_close(inputs[4], normed.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inputs[PRODUCTS - 1], outputs.hidden_states[-1][:, PROMPT:], rtol=1e-5, atol=1e-6)


def planted(seed: int, told: float) -> tuple:
    """Text whose divergence follows the entropy to come, and inputs of two products that tell of it, or do not."""
    rng = np.random.default_rng(seed)
    rows, decoded, tokens, width = 12, 6, 64, 20
    entropy = rng.gamma(4.0, 0.5, (rows, tokens))
    direction = rng.normal(size=width)
    inputs = {}
    for site, share in ((3, told), (7, 0.3 * told)):
        x = share * entropy[..., None] * direction + rng.normal(size=(rows, tokens, width))
        inputs[site] = torch.from_numpy(x).float()
    hardness = np.exp(entropy[:decoded]) * np.exp(rng.normal(0, 0.5, (decoded, tokens)))
    runs = []
    for factor in FACTORS:
        divergence = torch.from_numpy(1e-3 * hardness * factor**2).float()
        read = torch.full((decoded, tokens), float(0.6 - 0.15 * np.log(factor)))
        blank = torch.zeros(decoded, tokens)
        runs.append(Decoded(divergence, blank.bool(), read, blank[..., None], blank, blank, blank.bool()))
    return inputs, torch.from_numpy(entropy), rng.uniform(size=(decoded, tokens)), runs


@seeds
def test_what_tells_of_the_entropy_to_come_is_found(seed):
    inputs, entropy, load, runs = planted(seed, told=0.7)
    scale = torch.ones(load.shape)
    found = fit_foresight(inputs, entropy, load, scale, runs, FACTORS)
    # The second knows less, so it is no use after the first.
    assert [anticipation.site for anticipation in found.anticipations] == [3]
    assert found.explained[0] > 0.5, found.explained
    (anticipation,) = found.anticipations
    assert (anticipation.factors.diff() <= 0).all()
    assert anticipation.factors[0] > 1.2
    assert anticipation.factors[-1] < 0.8
    # What the probe predicts is the logarithm of the divergence.
    x = inputs[3][: len(load)]
    predicted = anticipation.predicted(x, torch.from_numpy(load).float()).double()
    cost = runs[1].divergence.double().log()
    assert np.corrcoef(predicted.flatten(), cost.flatten())[0, 1] > 0.7
    assert float((predicted - cost).mean()) == pytest.approx(0, abs=0.1)
    # And the map saves what is said of it, by the formula that the runs were made by.
    factor = anticipation.refined(scale, x, torch.from_numpy(load).float()).double()
    divergence = (runs[1].divergence.double() * factor**2).mean()
    read = (0.6 - 0.15 * factor.log()).mean()
    same_bytes = runs[1].divergence.double().mean() * torch.exp(2 * (0.6 - read) / 0.15)
    assert 1 - float(divergence / same_bytes) == pytest.approx(found.gain, abs=0.1)
    assert found.gain > 0.15


@seeds
def test_where_nothing_tells_of_it_no_probe_is_worth_much(seed):
    inputs, entropy, load, runs = planted(seed, told=0.0)
    found = fit_foresight(inputs, entropy, load, torch.ones(load.shape), runs, FACTORS)
    assert found.gain < 0.05


def test_a_map_that_is_there_already_is_taken_into_account():
    """Where the load's scale already achieves a probe's effect, there is nothing left to save."""
    inputs, entropy, load, runs = planted(0, told=0.7)
    free = fit_foresight(inputs, entropy, load, torch.ones(load.shape), runs, FACTORS)
    hard = entropy[: len(load)]
    best = torch.exp(-0.5 * (hard - hard.mean())).clamp(0.55, 1.8).float()
    after = fit_foresight(inputs, entropy, load, best, runs, FACTORS)
    assert after.gain < free.gain / 3
