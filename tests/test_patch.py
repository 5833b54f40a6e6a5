"""sparsify(): the same logits while dense, fewer neurons when not, for every family."""

import pytest
import torch
from transformers import BertConfig, BertModel

from clada.exporter.families import FAMILIES
from clada.exporter.partial_forward import input_of, logits_from
from clada.exporter.patch import decoder_layers, sparse_layers, sparsify
from clada.plugins.errors import CladaError
from tests.checkpoints import CONFIGS, LAYERS, NEURONS, VOCABULARY, random_model

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


@families
def test_partial_passes_equal_the_whole(family):
    """Starting at a layer with the input it would have had gives the same logits."""
    model, ids = random_model(family), token_ids()
    whole = logits_from(model, ids)
    for index, layer in enumerate(decoder_layers(model)):
        hidden = input_of(model, layer, ids)
        torch.testing.assert_close(logits_from(model, ids, index, hidden), whole)
        torch.testing.assert_close(input_of(model, layer, ids, index, hidden), hidden)
    torch.testing.assert_close(logits_from(model, ids), whole)


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
