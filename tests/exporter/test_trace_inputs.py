"""The graph that skips inputs against the traced module, at sizes the tracer never saw, and its padding."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from clada.contract.artifact import in_place_name
from clada.errors import CladaError
from clada.exporter.graph import trace as tracing
from clada.exporter.graph.decoder import Decoder
from clada.exporter.graph.decoder_inputs import first_step, next_step, random_step
from clada.exporter.model.calibrated import Calibrated
from clada.exporter.model.products import find_products
from clada.exporter.model.sparse_products import SparseProduct, row_shares, sparse_products, sparsify_products
from clada.exporter.model.sparse_sites import check_fits
from clada.exporter.model.steering import SiteSettings, Steering, steered
from clada.ops import DOMAIN, SPARSE_LINEAR, graph_names
from clada.runtime.models.ort_cpu_in_place import InPlaceModel
from tests.exporter.test_export import assert_verify_notices
from tests.exporter.test_input_probes import probe
from tests.exporter.test_trace import LOAD_MAP, SIZES
from tests.support.checkpoints import LAYERS, VOCABULARY, random_model, tiny_tokenizer
from tests.support.exhaustive import few
from tests.support.thresholds import uniform

PRODUCTS = 4 * LAYERS + 1
PROBED = (4, PRODUCTS - 1)


def patched(family: str):
    """A model that skips inputs, and values with which it skips a share of them."""
    model = random_model(family)
    products = find_products(model)
    generator = torch.Generator().manual_seed(1)
    thresholds = [torch.rand(product.inputs, generator=generator) * 0.3 for product in products]
    probes = tuple(probe(site, products[site].inputs) for site in PROBED)
    sparsify_products(model, products)
    return model, Calibrated(tuple(thresholds), anticipations=probes, load_map=LOAD_MAP, row_share=row_shares(products))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A patched Llama, its calibrated values, and its two graphs."""
    model, calibrated = patched("llama")
    path = tmp_path_factory.mktemp("inputs") / "model.onnx"
    tracing.save(tracing.trace(model, calibrated), path)
    tracing.save_in_place(tracing.trace(model, calibrated, in_place_cache=True), path)
    return model, calibrated, path


@pytest.mark.parametrize(("batch", "sequence", "past"), few(SIZES, [(2, 3, 5), (3, 1, 7), (1, 7, 0)]))
def test_graph_equals_module(exported, batch, sequence, past):
    model, calibrated, path = exported
    step = random_step(model, batch, sequence, past)
    step["effort"] = [torch.linspace(0.5, 1.5, batch)]
    names = ("input_ids", "attention_mask", "position_ids", "past_logits")
    given = [step[name] for name in names] + step["effort"] + [tensor for pair in step["past"] for tensor in pair]
    session = onnxruntime.InferenceSession(str(path))
    feeds = {name: t.numpy() for name, t in zip(tracing.input_names(LAYERS, True), given, strict=True)}
    found = dict(zip(tracing.output_names(LAYERS, True), session.run(None, feeds), strict=True))
    with torch.no_grad():
        decoder = Decoder(model, calibrated)
        logits, present, score, load, *_, active, read = decoder(**step, **calibrated.tensors())
    assert score == []
    np.testing.assert_allclose(found[graph_names.LOGITS], logits.numpy(), atol=1e-5)
    np.testing.assert_array_equal(found[graph_names.ACTIVE], active.numpy())
    np.testing.assert_allclose(found[graph_names.READ], read[0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(found[graph_names.LOAD], load.numpy(), atol=1e-5)
    for n, tensor in enumerate(present):
        np.testing.assert_allclose(found[graph_names.present(n // 2)[n % 2]], tensor.numpy(), atol=1e-5)
    is_decode = sequence == 1 and past > 0
    assert (found[graph_names.READ] < 0.95).all() == is_decode


def test_in_place_steps_equal_the_module(exported):
    model, calibrated, path = exported
    exported_model = InPlaceModel(path.with_name(in_place_name(path)), 128)
    cache = exported_model.empty_cache(1)
    decoder, values = Decoder(model, calibrated), calibrated.tensors()
    tokens = torch.randint(0, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(5))
    step = first_step(model, tokens[:, :8], torch.ones(1, 8, dtype=torch.int64))
    names = ("input_ids", "attention_mask", "position_ids", "past_logits")
    for at in range(8, 13):
        inputs = {name: step[name].numpy() for name in names} | {graph_names.EFFORT: np.ones(1, np.float32)}
        found, cache = exported_model.step(inputs, cache, [graph_names.LOGITS, graph_names.ACTIVE, graph_names.READ])
        with torch.no_grad():
            logits, present, *_, active, read = decoder(**step, **values)
        np.testing.assert_allclose(found[graph_names.LOGITS], logits.numpy(), atol=1e-5)
        np.testing.assert_array_equal(found[graph_names.ACTIVE], active.numpy())
        np.testing.assert_allclose(found[graph_names.READ], read[0].numpy(), rtol=1e-6)
        if at < 12:
            step = next_step(step, tokens[:, at : at + 1], logits, present)


def test_every_matrix_is_one_node_with_thresholds_of_its_own(exported):
    *_, path = exported
    for file in (path, path.with_name(in_place_name(path))):
        nodes = [n for n in onnx.load(file, load_external_data=False).graph.node if n.domain == DOMAIN]
        ours = [node for node in nodes if node.op_type == SPARSE_LINEAR.name]
        assert {node.input[2] for node in ours} == {graph_names.threshold(n) for n in range(PRODUCTS)}
        assert len(ours) == PRODUCTS


@pytest.mark.parametrize(
    ("initializer", "factor"),
    [("anticipation.4.weight", 5), (f"anticipation.{PRODUCTS - 1}.factors", 0.9), ("threshold.5", 3)],
)
def test_verify_notices_a_changed_constant(exported, initializer, factor):
    model, calibrated, path = exported
    assert_verify_notices(path, model, calibrated, tiny_tokenizer(), initializer, factor)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_patched_model_is_the_model_it_was(family):
    """With a scale of 0 as Hugging Face computes it; above, as if inputs below their thresholds were 0."""
    ids = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = random_model(family)(input_ids=ids).logits
        model, calibrated = patched(family)
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
        with steered(model, Steering(calibrated, scale=1.0)):
            sparse = model(input_ids=ids).logits
        assert not torch.allclose(sparse, expected, atol=1e-2)
        plain = random_model(family)
        found = find_products(plain)
        hooks = [
            linear.register_forward_pre_hook(
                lambda _, args, t=threshold: (torch.where(args[0].abs() < t, 0, args[0]), *args[1:])
            )
            for product, threshold in zip(found, calibrated.thresholds, strict=True)
            for linear in product.linears
        ]
        torch.testing.assert_close(sparse, plain(input_ids=ids).logits, rtol=0, atol=1e-5)
        assert len(hooks) == sum(len(product.linears) for product in found)
    assert all(isinstance(product, SparseProduct) for product in sparse_products(model))


def test_thresholds_that_do_not_fit_are_refused():
    model = random_model("llama")
    products = find_products(model)
    sparsify_products(model, products)
    first, second, third, _, *others = uniform(model)
    settings = SiteSettings((first, second, third, torch.zeros(7), *others))
    with pytest.raises(CladaError, match=r"threshold of model.layers.0.mlp.down_proj is torch.float32 \[7\], expected"):
        check_fits(model, settings)
