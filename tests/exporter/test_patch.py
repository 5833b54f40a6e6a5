"""sparsify(): the same logits while dense, fewer neurons when not, for every family."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from clada.errors import CladaError
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.families import FAMILIES
from clada.exporter.model.patch import sparse_layers, sparsify
from clada.exporter.model.sparse_sites import check_fits
from clada.exporter.model.steering import SiteSettings, Steering, steered
from tests.support.checkpoints import CONFIGS, LAYERS, NEURONS, VOCABULARY, random_model
from tests.support.thresholds import uniform

families = pytest.mark.parametrize("family", FAMILIES)


def token_ids(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def test_every_family_has_a_test_model():
    assert set(CONFIGS) == set(FAMILIES)


@families
@torch.no_grad()
def test_dense_logits_are_the_originals(family):
    model, ids = random_model(family), token_ids()
    original = model(ids).logits
    parameters = model.num_parameters()
    sparsify(model)
    with steered(model, Steering(SiteSettings(tuple(torch.rand(NEURONS) for _ in range(LAYERS))))) as trace:
        patched = model(ids).logits
    assert (patched - original).abs().max() <= 1e-4 * (original.max() - original.min())
    assert model.num_parameters() == parameters
    assert all(active.numel() == ids.numel() for active in trace.active.values())


@families
@torch.no_grad()
def test_scale_drops_neurons(family):
    model, ids = random_model(family), token_ids()
    dense = model(ids).logits
    sparsify(model)
    settings, kept = SiteSettings(uniform(model, 0.2)), []
    for scale in (0.0, 1.0, 2.0, 1e9):
        with steered(model, Steering(settings, scale=torch.full(ids.shape, scale))) as trace:
            logits = model(ids).logits
        kept.append(sum(int(active.sum()) for active in trace.active.values()))
    assert kept[0] > kept[1] > kept[2] > kept[3] == 0
    assert not torch.allclose(logits, dense, atol=1e-3)
    # The steering ends with its context.
    torch.testing.assert_close(model(ids).logits, dense, atol=1e-4, rtol=1e-4)


@families
@torch.no_grad()
def test_pool_restricts_neurons(family):
    model, ids = random_model(family), token_ids()
    sparsify(model)
    pools = [torch.zeros(len(ids), NEURONS, dtype=torch.bool) for _ in range(LAYERS)]
    for pool in pools:
        pool[0, :10] = True
    with steered(model, Steering(scale=torch.zeros(ids.shape), pools=pools)) as trace:
        model(ids)
    assert len(trace.score) == LAYERS
    for score in trace.score.values():
        assert not score[0, 10:].any()
        assert score[0, :10].any()
        assert not score[1].any()


def probe(layer: int, factor: float) -> Anticipation:
    """One that multiplies the scale of every token with the same factor."""
    zero = torch.zeros(())
    return Anticipation(layer, torch.zeros(48), zero, zero, torch.tensor([0.0, 1.0]), torch.full((2,), factor))


@families
@pytest.mark.parametrize("layer", range(LAYERS))
@torch.no_grad()
def test_anticipation_refines_the_scale_from_its_layer_on(family, layer):
    """Below it nothing changes; from it on tokens that are sparse drop all, and dense ones and padding stay so."""
    model, ids = random_model(family), token_ids()
    sparsify(model)
    scale = torch.ones(ids.shape)
    scale[:, :3], scale[:, 3] = 0, -1
    load = torch.zeros(ids.shape)

    def active(anticipations=(), load=None) -> torch.Tensor:
        settings = SiteSettings(uniform(model, 0.2), anticipations=anticipations)
        with steered(model, Steering(settings, scale, load=load)) as trace:
            model(ids)
        return torch.stack([kept.reshape(ids.shape) for kept in trace.active.values()])

    without = active()
    assert (without[:, :, 4:] > 0).all()
    refined = active((probe(layer, 1e9),), load)
    assert torch.equal(refined[:layer], without[:layer])
    assert not refined[layer:, :, 3:].any()
    assert (refined[layer:, :, :3] > 0.2 * NEURONS).all()
    # It takes a load to anticipate by.
    assert torch.equal(active((probe(layer, 1e9),)), without)
    # And what it did to one pass is not left for the next.
    assert torch.equal(active(), without)


def test_refined_scale_is_interpolated_between_knots():
    """Against NumPy's interpolation of x . weight + load * load_weight + bias."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 9, 48, generator=generator), torch.randn(48, generator=generator) / 7
    load, knots = torch.rand(4, 9, generator=generator), torch.tensor([-1.0, -0.2, -0.2 + 1e-6, 0.5])
    factors = torch.tensor([2.0, 1.5, 1.0, 0.25])
    anticipation = Anticipation(0, weight, torch.tensor(0.8), torch.tensor(-0.3), knots, factors)
    predicted = (x @ weight + 0.8 * load - 0.3).numpy()
    assert predicted.min() < -1
    assert predicted.max() > 0.5
    expected = np.interp(predicted, knots.numpy(), factors.numpy())
    refined = anticipation.refined(torch.full((4, 9), 1.5), x, load)
    np.testing.assert_allclose(refined.numpy(), 1.5 * expected, rtol=1e-4)
    for unchanged in (0.0, -1.0):
        scale = torch.full((4, 9), unchanged)
        assert torch.equal(anticipation.refined(scale, x, load), scale)


@families
@torch.no_grad()
def test_compensation_is_added_only_where_sparse(family):
    """To each layer's own output, at tokens whose scale is above 0 or that are said to be sparse."""
    model, ids = random_model(family), token_ids()
    sparsify(model)
    scale = torch.ones(ids.shape)
    scale[:, :3], scale[:, 3] = 0, -1
    added = tuple(torch.full((48,), 1.0 + index) for index in range(LAYERS))
    settings = SiteSettings(compensation=added)
    others = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    x = torch.randn(*ids.shape, 48, generator=torch.Generator().manual_seed(3))
    for layer in sparse_layers(model):
        for given in (x, x.flatten(0, 1)):  # as some families flatten it
            with steered(model, Steering(scale=scale)):
                plain = layer(given)
            for sparse, expected in ((None, scale > 0), (others, others)):
                with steered(model, Steering(settings, scale, sparse=sparse)):
                    difference = (layer(given) - plain).reshape(x.shape)
                torch.testing.assert_close(difference, expected[..., None] * added[layer.index], atol=1e-5, rtol=0)
    with steered(model, Steering(settings, torch.zeros(ids.shape))):
        torch.testing.assert_close(model(ids).logits, random_model(family)(ids).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_steering_ends_with_its_context():
    """A pass within another is steered by its own alone, and the outer one's returns, after an error too."""
    model, ids = random_model("llama"), token_ids()
    sparsify(model)
    dense = model(ids).logits
    nothing = Steering(SiteSettings(compensation=(torch.zeros(48),) * LAYERS), torch.full(ids.shape, -1.0))
    with pytest.raises(ZeroDivisionError), steered(model, nothing) as outer:
        with steered(model) as inner:
            torch.testing.assert_close(model(ids).logits, dense)
        assert len(inner.active) == LAYERS
        assert outer.active == outer.score == {}
        model(ids)
        assert all(not kept.any() for kept in outer.active.values())
        _ = 1 / 0
    torch.testing.assert_close(model(ids).logits, dense)


def test_unknown_family_is_refused_with_the_known_ones():
    model = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(
        CladaError, match=r"neurons of model type .bert. cannot be skipped, only those of llama, mistral"
    ):
        sparsify(model)


def test_bias_that_the_op_lacks_is_refused():
    with pytest.raises(CladaError, match=r"mlp\.gate_proj has a bias, which SparseGatedFFN does not take"):
        sparsify(random_model("llama", mlp_bias=True))


def test_missing_bias_of_an_ungated_network_is_zero():
    model = random_model("opt", enable_bias=False)
    original = model(token_ids()).logits
    sparsify(model)
    torch.testing.assert_close(model(token_ids()).logits, original, atol=1e-5, rtol=1e-5)


def test_unknown_activation_is_refused():
    with pytest.raises(CladaError, match="activation 'tanh' has no sparse op"):
        sparsify(random_model("llama", hidden_act="tanh"))


def test_thresholds_must_fit():
    model = random_model("llama")
    sparsify(model)
    with pytest.raises(CladaError, match=f"thresholds for 1 layers, the model has {LAYERS}"):
        check_fits(model, SiteSettings((torch.zeros(NEURONS),)))
    with pytest.raises(CladaError, match=r"threshold of layer 0 is torch.float32 \[5\], expected torch.float32 \[88\]"):
        check_fits(model, SiteSettings((torch.zeros(5),) * LAYERS))


def test_steering_a_model_that_is_not_patched_is_refused():
    with pytest.raises(CladaError, match="no sparse sites"), steered(random_model("llama")):
        pass


def test_patching_twice_is_refused():
    model = random_model("llama")
    sparsify(model)
    with pytest.raises(CladaError, match="sparse already"):
        sparsify(model)
    assert len(sparse_layers(model)) == LAYERS
