"""Comparisons of verification that a whole export does not exercise."""

import torch

from clada.exporter.model.checkpoint import load_model
from clada.exporter.model.patch import sparse_layers, sparsify
from clada.exporter.verify import _decision_gap


def test_a_neuron_that_adds_nothing_tells_nothing_of_its_threshold(checkpoint):
    """ONNX Runtime's sum for its other factor may be off 0 where PyTorch's is 0, and the neuron large all the same."""
    model, _ = load_model(str(checkpoint("llama")), torch.float32)
    sparsify(model)
    layer = sparse_layers(model)[0]
    layer.get_parameter("w_up").data[3] = 0
    x = torch.randn(1, layer.get_parameter("w_up").shape[1], generator=torch.Generator().manual_seed(1))
    scale, everything = torch.ones(1, 1), torch.ones(1, layer.neurons, dtype=torch.bool)
    kept = everything.clone()
    assert _decision_gap(layer, x, torch.zeros(layer.neurons), scale, everything, kept) == (0, 0.0)
    kept[0, 5] = False
    magnitude = layer.activations(x)[0].abs()[0]
    expected = float(magnitude[5] / magnitude.max())
    assert _decision_gap(layer, x, torch.zeros(layer.neurons), scale, everything, kept) == (1, expected)
