"""Everything that a run of the benchmark measured, as lines and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from clada.benchmark.contender import REFERENCE
from clada.benchmark.footprint import Footprint, footprint_lines
from clada.benchmark.quality import Qualities, quality_lines
from clada.benchmark.report import Table, Target, table_lines

Measured = Table | list[Footprint] | Qualities


@dataclass
class Results:
    """Measurements so far.

    Args:
        machine: Description of the machine.
        settings: Settings of the run.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    qualities: Qualities = field(default_factory=lambda: Qualities(()))

    def add(self, measured: Measured) -> list[str]:
        """Add a measurement, and format it."""
        if isinstance(measured, Table):
            self.tables.append(measured)
            return table_lines(measured)
        if isinstance(measured, Qualities):
            self.qualities = measured
            return quality_lines(measured)
        self.footprints += measured
        return footprint_lines(measured)


def json_text(results: Results, targets: Sequence[Target]) -> str:
    """Serialize all measurements with the machine, the settings and the targets."""
    report = {
        "machine": results.machine,
        "settings": results.settings,
        "reference": REFERENCE,
        "tables": [asdict(table) for table in results.tables],
        "footprints": [asdict(footprint) for footprint in results.footprints],
        "qualities": [asdict(quality) for quality in results.qualities.of],
        "targets": [asdict(target) | {"met": target.met} for target in targets],
    }
    return json.dumps(report, indent=1) + "\n"
