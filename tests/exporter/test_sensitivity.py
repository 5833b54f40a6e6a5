"""Estimated cost of losing a neuron, against all derivatives by brute force, and against the actual cost."""

import pytest
import torch

from clada.exporter.calibration.decode_pass import Texts
from clada.exporter.calibration.sensitivity import sensitivities
from clada.exporter.model.patch import decoder_layers, sparsify
from clada.exporter.model.steering import SiteSettings, Steering, steered
from tests.support.checkpoints import NEURONS, random_model
from tests.support.demo_model import patched_demo
from tests.support.thresholds import uniform

VOCABULARY, TOKENS, PROMPT = 24, 5, 2
IDS = torch.randint(1, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(2))
# Down projections, which a neuron's value enters.
OUTWARD = {"llama": "mlp.down_proj", "gpt_neox": "mlp.dense_4h_to_h", "opt": "fc2"}


def small(family: str):
    """A model with a vocabulary that can be summed over."""
    return random_model(family, vocab_size=VOCABULARY, num_hidden_layers=2)


def fisher_diagonal(family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The Fisher information f64[L, S - P, F] of each neuron's value at each decoded token, and its factor up.

    F = sum over predictions t and tokens v of p_t(v) (d log p_t(v) / d h)^2: every derivative of every log-probability
    of the model as Hugging Face has it; nothing is drawn.
    """
    model = small(family).double()
    layers = decoder_layers(model)
    up = torch.ones(len(layers), TOKENS, NEURONS, dtype=torch.float64)
    for index, layer in enumerate(layers if family == "llama" else []):

        def keep(_module, _args, y, index=index) -> None:
            up[index] = y.detach()[0]

        layer.mlp.up_proj.register_forward_hook(keep)

    def log_probabilities(added: torch.Tensor) -> torch.Tensor:
        handles = [
            layer.get_submodule(OUTWARD[family]).register_forward_pre_hook(
                lambda _m, args, more=more: (args[0] + more.reshape(args[0].shape),)
            )
            for layer, more in zip(layers, added, strict=True)
        ]
        logits = model(IDS).logits[0]
        for handle in handles:
            handle.remove()
        return torch.log_softmax(logits, -1)

    nothing = torch.zeros(len(layers), TOKENS, NEURONS, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(log_probabilities, nothing)
    weights = log_probabilities(nothing).detach().exp()
    fisher = torch.einsum("tv,tvlsf->lsf", weights, jacobian.square())
    return fisher[:, PROMPT:], up[:, PROMPT:]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_it_is_the_fisher_diagonal(family):
    """With many draws: the mean over decoded tokens, of a neuron's value and of its activation."""
    fisher, ups = fisher_diagonal(family)
    model = small(family)
    sparsify(model)
    measured = sensitivities(model, [IDS.expand(4000, TOKENS)], PROMPT)
    for layer, (sensitivity, expected, up) in enumerate(zip(measured, fisher, ups, strict=True)):
        unit, activation = expected.mean(0), (expected * up.square()).mean(0)
        for given, wanted in ((sensitivity.unit, unit), (sensitivity.activation, activation)):
            assert given.dtype == torch.float64
            ratio = given / wanted
            assert (ratio - 1).abs().max() < 0.2, layer
            assert ratio.mean() == pytest.approx(1, abs=0.03)
    if family == "llama":  # and the two are not the same
        assert (measured[0].unit / measured[0].activation).std() > 0.1


def test_draws_differ_and_a_seed_repeats_them():
    model = small("llama")
    sparsify(model)
    first, again, other = (sensitivities(model, [IDS, IDS], PROMPT, seed)[0].unit for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_model_is_left_as_it_was():
    model = small("gpt_neox")
    sparsify(model)
    steering = Steering(SiteSettings(uniform(model, 0.3)), torch.ones(IDS.shape))
    embedding = model.get_input_embeddings().weight
    embedding.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert len(set(before.values())) == 2

    def logits():
        with torch.no_grad(), steered(model, steering):
            return model(IDS).logits

    expected = logits()
    sensitivities(model, [IDS], PROMPT)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(logits(), expected)


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_it_predicts_what_losing_a_neuron_costs(name):
    """Half of it, times the square of the activation, is the divergence when a token loses a neuron."""
    if name == "tiny":
        model = random_model("llama")
        sparsify(model)
        rows = torch.randint(1, 512, (96, 16), generator=torch.Generator().manual_seed(3))
    else:
        model, rows, _ = patched_demo()
        rows = rows.reshape(-1, 16)
    texts = Texts(model, rows, 6)
    measured = sensitivities(model, texts.batches, texts.prompt_tokens)
    parts: list[list[torch.Tensor]] = [[] for _ in texts.layers]
    texts.dense_inputs(lambda index, x: parts[index].append(texts.layers[index].activations(x)[0][:, 0]))
    activation = [torch.cat(part).double() for part in parts]
    # Each row loses one neuron of one layer at its first decoded token: for the others its pool is opened.
    opened = torch.ones(len(rows), rows.shape[1] - 6, dtype=torch.bool)
    opened[:, 0] = False
    pools = [torch.ones(len(rows), layer.neurons, dtype=torch.bool) for layer in texts.layers]
    generator = torch.Generator().manual_seed(0)
    predicted = torch.zeros(len(rows), dtype=torch.float64)
    for row in range(len(rows)):
        layer = row % len(texts.layers)
        cost = activation[layer].square().mean(0) * measured[layer].activation / 2
        # Of the costlier ones: the divergence must stand out from rounding.
        neuron = int(cost.argsort(descending=True)[torch.randint(60, (1,), generator=generator)])
        pools[layer][row, neuron] = False
        predicted[row] = activation[layer][row, neuron].square() * measured[layer].activation[neuron] / 2
    happened = texts.decode(SiteSettings(), 0.0, pools, opened).divergence.double().sum(1)
    # Roots, as one token in a hundred may cost as much as all others together.
    assert 0.6 < predicted.sqrt().sum() / happened.clamp_min(0).sqrt().sum() < 1.6
    ranks = torch.stack([values.argsort().argsort() for values in (predicted, happened)]).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.6
