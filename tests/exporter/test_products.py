"""Products of every family, found by their inputs."""

import pytest
import torch
from torch import nn

from clada.exporter.model.families import FAMILIES
from clada.exporter.model.products import find_products, input_hooks
from tests.support.checkpoints import LAYERS, NEURONS, VOCABULARY, random_model

WIDTH = 48
_GATED = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
# The layers of a decoder layer's products, in the order in which they run.
OF_A_LAYER = {
    "gpt_neox": [["query_key_value"], ["dense"], ["dense_h_to_4h"], ["dense_4h_to_h"]],
    "opt": [["q_proj", "k_proj", "v_proj"], ["out_proj"], ["fc1"], ["fc2"]],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_one_input_are_one_product(family):
    model = random_model(family)
    products = find_products(model)
    names = [sorted(name.rpartition(".")[2] for name in product.names) for product in products]
    of_a_layer = [sorted(group) for group in OF_A_LAYER.get(family, _GATED)]
    assert names[:-1] == of_a_layer * LAYERS
    assert products[-1].linears == (model.get_output_embeddings(),)
    assert (products[-1].inputs, products[-1].outputs) == (WIDTH, VOCABULARY)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert sum(product.weights for product in products) == sum(linear.weight.numel() for linear in linears)
    inward, outward = products[2], products[3]
    assert (inward.inputs, inward.outputs) == (WIDTH, NEURONS * len(inward.linears))
    assert (outward.inputs, outward.outputs) == (NEURONS, WIDTH)


def test_what_is_put_in_an_inputs_place_reaches_every_layer_of_the_product():
    model = random_model("llama")
    products = find_products(model)
    ids = torch.tensor([[1, 2, 3]])
    shown = []

    def silence(index, x):
        shown.append(index)
        return torch.zeros_like(x) if index == 2 else None

    with torch.no_grad():
        with input_hooks(products, silence):
            without = model(input_ids=ids).logits
        expected_shown = list(range(len(products)))
        assert shown == expected_shown
        mlp = model.model.layers[0].mlp
        mlp.gate_proj.weight.zero_()
        mlp.up_proj.weight.zero_()
        torch.testing.assert_close(without, model(input_ids=ids).logits)
