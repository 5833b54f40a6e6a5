"""Everything about a model that calibration finds: the graph's constants, by argument and by name."""

from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clada.contract.artifact import data_name
from clada.contract.graph_constants import GraphConstants
from clada.contract.onnx_wire import nodes_of
from clada.exporter.model.anticipation import from_named
from clada.exporter.model.load_map import NO_POOL, LoadMap
from clada.exporter.model.steering import SiteSettings
from clada.ops import DOMAIN, LOAD_SIGNAL, graph_names


@dataclass(frozen=True)
class Calibrated(SiteSettings):
    """The settings of a model's sites, and how the load scales them.

    Args:
        load_map: Constants of the load signal.
        row_share: f32[P], the share of all products' weights that is in a row of each; None where neurons are skipped.
    """

    load_map: LoadMap = field(kw_only=True)
    row_share: Tensor | None = field(default=None, kw_only=True)

    def tensors(self) -> dict[str, Any]:
        """The calibrated arguments of Decoder.forward."""
        load_map, by_input = self.load_map, self.row_share is not None
        return {
            "thresholds": list(self.thresholds),
            graph_names.SURPRISAL_KNOTS: load_map.surprisal_knots,
            graph_names.ENTROPY_KNOTS: load_map.entropy_knots,
            graph_names.SCALE_KNOTS: load_map.scale_knots,
            graph_names.REANALYSIS_LOAD: [] if by_input else [load_map.reanalysis_load],
            "compensation": list(self.compensation),
            "anticipation": [tensor for probe in self.anticipations for tensor in probe.tensors()],
            graph_names.TOKEN_SCALE: [] if load_map.token_scale is None else [load_map.token_scale],
            graph_names.ROW_SHARE: [] if self.row_share is None else [self.row_share],
        }

    def names(self) -> list[str]:
        """Names of the calibrated initializers, in the order of the tensors in `tensors`."""
        by_input = self.row_share is not None
        names = [graph_names.threshold(n) for n in range(len(self.thresholds))]
        names += [graph_names.SURPRISAL_KNOTS, graph_names.ENTROPY_KNOTS, graph_names.SCALE_KNOTS]
        names += [] if by_input else [graph_names.REANALYSIS_LOAD]
        names += [graph_names.compensation(n) for n in range(len(self.compensation))]
        names += [name for probe in self.anticipations for name in graph_names.anticipation(probe.site)]
        names += [] if self.load_map.token_scale is None else [graph_names.TOKEN_SCALE]
        return names + ([graph_names.ROW_SHARE] if by_input else [])

    @classmethod
    def from_graph(cls, path: Path, data: Path | None = None) -> "Calibrated":
        """The constants of an exported graph.

        Args:
            path: The ONNX file.
            data: The file of the graph's weights; the portable graph's own where None.
        """
        content = path.read_bytes()
        values = GraphConstants(content, data or path.with_name(data_name(path)))

        def constant(name: str) -> Tensor:
            return torch.from_numpy(values.read(name).copy())

        def optional(name: str) -> Tensor | None:
            return constant(name) if name in values else None

        sites = list(takewhile(lambda n: graph_names.threshold(n) in values, count()))
        node = next(node for node in nodes_of(content, DOMAIN) if node.op == LOAD_SIGNAL.name)
        reanalysis_load = optional(graph_names.REANALYSIS_LOAD)
        return cls(
            thresholds=tuple(constant(graph_names.threshold(n)) for n in sites),
            compensation=tuple(constant(name) for name in map(graph_names.compensation, sites) if name in values),
            anticipations=from_named([n for n in sites if graph_names.anticipation(n)[0] in values], constant),
            load_map=LoadMap(
                surprisal_knots=constant(graph_names.SURPRISAL_KNOTS),
                entropy_knots=constant(graph_names.ENTROPY_KNOTS),
                scale_knots=constant(graph_names.SCALE_KNOTS),
                reanalysis_load=torch.tensor(NO_POOL) if reanalysis_load is None else reanalysis_load,
                surprisal_weight=dict(node.floats)[LOAD_SIGNAL.attributes[0].name],
                token_scale=optional(graph_names.TOKEN_SCALE),
            ),
            row_share=optional(graph_names.ROW_SHARE),
        )
