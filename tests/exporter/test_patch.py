"""sparsify(): the same logits while dense, fewer neurons when not, for every family."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from clada.errors import CladaError
from clada.exporter.model.anticipation import Anticipation
from clada.exporter.model.families import FAMILIES
from clada.exporter.model.patch import sparse_layers, sparsify
from tests.support.checkpoints import CONFIGS, LAYERS, NEURONS, VOCABULARY, random_model

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
    sparsity = sparsify(model, [torch.rand(NEURONS) for _ in range(LAYERS)])
    patched = model(ids).logits
    assert (patched - original).abs().max() <= 1e-4 * (original.max() - original.min())
    assert model.num_parameters() == parameters
    assert all(active.numel() == ids.numel() for active in sparsity.active)


@families
@torch.no_grad()
def test_scale_drops_neurons(family):
    model, ids = random_model(family), token_ids()
    dense = model(ids).logits
    sparsity = sparsify(model, [torch.full((NEURONS,), 0.2) for _ in range(LAYERS)])
    kept = []
    for scale in (0.0, 1.0, 2.0, 1e9):
        with sparsity.steered(scale=torch.full(ids.shape, scale)):
            logits = model(ids).logits
        kept.append(sum(int(active.sum()) for active in sparsity.active))
    assert kept[0] > kept[1] > kept[2] > kept[3] == 0
    assert not torch.allclose(logits, dense, atol=1e-3)
    # The steering ends with its context.
    torch.testing.assert_close(model(ids).logits, dense, atol=1e-4, rtol=1e-4)


@families
@torch.no_grad()
def test_pool_restricts_neurons(family):
    model, ids = random_model(family), token_ids()
    sparsity = sparsify(model)
    pools = [torch.zeros(len(ids), NEURONS, dtype=torch.bool) for _ in range(LAYERS)]
    for pool in pools:
        pool[0, :10] = True
    with sparsity.steered(scale=torch.zeros(ids.shape), pools=pools):
        model(ids)
    for score in sparsity.score:
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
    sparsity = sparsify(model, [torch.full((NEURONS,), 0.2) for _ in range(LAYERS)])
    scale = torch.ones(ids.shape)
    scale[:, :3], scale[:, 3] = 0, -1
    load = torch.zeros(ids.shape)

    def active(**steering) -> torch.Tensor:
        with sparsity.steered(scale, **steering):
            model(ids)
        return torch.stack([kept.reshape(ids.shape) for kept in sparsity.active])

    without = active()
    assert (without[:, :, 4:] > 0).all()
    refined = active(anticipations=[probe(layer, 1e9)], load=load)
    assert torch.equal(refined[:layer], without[:layer])
    assert not refined[layer:, :, 3:].any()
    assert (refined[layer:, :, :3] > 0.2 * NEURONS).all()
    # It takes a load to anticipate by.
    assert torch.equal(active(anticipations=[probe(layer, 1e9)]), without)
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
    sparsity = sparsify(model)
    scale = torch.ones(ids.shape)
    scale[:, :3], scale[:, 3] = 0, -1
    added = [torch.full((48,), 1.0 + index) for index in range(LAYERS)]
    others = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    x = torch.randn(*ids.shape, 48, generator=torch.Generator().manual_seed(3))
    for layer in sparse_layers(model):
        for given in (x, x.flatten(0, 1)):  # as some families flatten it
            with sparsity.steered(scale):
                plain = layer(given)
            for sparse, expected in ((None, scale > 0), (others, others)):
                with sparsity.steered(scale, compensation=added, sparse=sparse):
                    difference = (layer(given) - plain).reshape(x.shape)
                torch.testing.assert_close(difference, expected[..., None] * added[layer.index], atol=1e-5, rtol=0)
    with sparsity.steered(torch.zeros(ids.shape), compensation=added):
        torch.testing.assert_close(model(ids).logits, random_model(family)(ids).logits, atol=1e-4, rtol=1e-4)


def test_steering_ends_with_its_context():
    """Every field is as it was, whatever was given and whatever layers did to it, after an error too."""
    sparsity = sparsify(random_model("llama"))
    sparsity.compensation, sparsity.anticipations, sparsity.scale = [torch.ones(48)] * LAYERS, [probe(0, 2.0)], 0.5
    sparsity.load, sparsity.sparse, sparsity.pools = torch.ones(1, 1), torch.ones(1, 1) > 0, []
    fields = ("thresholds", "compensation", "anticipations", "scale", "load", "sparse", "pools")
    before = {name: getattr(sparsity, name) for name in fields}
    with pytest.raises(ZeroDivisionError), sparsity.steered(torch.ones(2, 2), thresholds=[], compensation=[]):
        assert sparsity.thresholds == sparsity.compensation == []
        assert sparsity.anticipations is before["anticipations"]
        # What a pass reads anew is not taken over from the one before.
        assert sparsity.load is sparsity.sparse is sparsity.pools is None
        with sparsity.steered(torch.ones(3, 3), anticipations=[], load=torch.zeros(3, 3)):
            assert sparsity.anticipations == []
            sparsity.scale = torch.zeros(3, 3)
        assert sparsity.scale.shape == (2, 2)
        _ = 1 / 0
    assert all(getattr(sparsity, name) is value for name, value in before.items())


def test_unknown_family_is_refused_with_the_known_ones():
    model = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(CladaError, match=r"'bert' is not supported; known are: llama, mistral, qwen2, qwen3"):
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
    with pytest.raises(CladaError, match="thresholds for 1 layers, the model has 3"):
        sparsify(random_model("llama"), [torch.zeros(NEURONS)])
    with pytest.raises(CladaError, match=r"threshold of layer 0 is torch.float32 \[5\], expected torch.float32 \[88\]"):
        sparsify(random_model("llama"), [torch.zeros(5)] * LAYERS)


def test_patching_twice_is_refused():
    model = random_model("llama")
    sparsify(model)
    with pytest.raises(CladaError, match="sparse already"):
        sparsify(model)
    assert len(sparse_layers(model)) == LAYERS
