"""Measured times as figures, and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clada.benchmark.contender import GENAI, REFERENCE, SAMPLED, Contender, dense
from clada.benchmark.precisions import BLOCKS
from clada.benchmark.timing import Samples

# What a table is of, where it is not of a whole model.
_SUBJECTS = {"layer": "one FFN layer", "linears": "one layer's linears by inputs", "artifact": "artifact"}


@dataclass(frozen=True)
class Target:
    """One target and the figure measured for it.

    Args:
        what: Name of the figure.
        wanted: At least this.
        reached: Measured value; None where there is none.
        at_most: Whether it was to be this at most instead.
    """

    what: str
    wanted: float
    reached: float | None
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        if self.reached is None:
            return False
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted


@dataclass(frozen=True)
class Row:
    """Figures of one contender; all but the first two are None where it could not run.

    Args:
        name: The contender.
        missing: Why it could not run; empty where it did.
        ms: Median time in milliseconds.
        ms_quartiles: First and third quartile of it.
        ratio: Speed relative to the reference: median over the rounds of the quotient of the two times.
        against: The same against ONNX Runtime's other dense graphs, by their names.
        active_target: Share of neurons that was asked for; None for dense ones.
        active: Share that was computed, mean.
        bytes_read: Bytes it must read; None where reading does not determine the time.
        gigabytes_per_second: bytes_read over the median time.
        floor_share: Median over the rounds of the time in which the machine reads as much, measured just before,
            over the time it took.
        error: Relative distance of its output from what it should be; None where nobody says what that is.
        samples_ms: Every time.
        bandwidth_gigabytes_per_second: Read bandwidth of the machine before each.
    """

    name: str
    missing: str = ""
    ms: float | None = None
    ms_quartiles: tuple[float, float] | None = None
    ratio: float | None = None
    against: Mapping[str, float] = field(default_factory=dict)
    active_target: float | None = None
    active: float | None = None
    bytes_read: float | None = None
    gigabytes_per_second: float | None = None
    floor_share: float | None = None
    error: float | None = None
    samples_ms: tuple[float, ...] = ()
    bandwidth_gigabytes_per_second: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """Figures of all contenders that were timed in turns.

    Args:
        shape: Name of the shape.
        what: Of WHATS, or "artifact".
        phase: "decode" or "prefill".
        tokens: Number of tokens computed at once.
        context: Number of tokens before them.
        rows: One a contender.
    """

    shape: str
    what: str
    phase: str
    tokens: int
    context: int
    rows: tuple[Row, ...]

    @property
    def reference(self) -> str:
        """Contender that the ratios are relative to."""
        if self.what == "artifact":
            return self.rows[0].name
        return GENAI if self.what == "genai" else REFERENCE

    @property
    def title(self) -> str:
        """Title of the table, in a line."""
        subject = _SUBJECTS.get(self.what, "whole model")
        context = f", context {self.context}" if self.context else ""
        return f"{self.shape}, {subject}, {self.phase} ({self.tokens} token{'s' * (self.tokens > 1)}{context})"


def _ratio(reference: Samples, samples: Samples) -> float:
    return float(np.median(np.array(reference.seconds) / np.array(samples.seconds)))


def row(
    contender: Contender, samples: Samples | None, reference: Samples, others: Mapping[str, Samples] | None = None
) -> Row:
    """Compute figures from times, and compare them with those of the reference and of others."""
    if samples is None:
        return Row(contender.name, contender.missing, active_target=contender.target)
    seconds, bandwidth = np.array(samples.seconds), np.array(samples.bandwidth)
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    active = float(np.mean(samples.active))
    bytes_read = contender.always_bytes + active * contender.active_bytes
    reads = len(bandwidth) > 0
    return Row(
        contender.name,
        ms=float(median) * 1e3,
        ms_quartiles=(float(low) * 1e3, float(high) * 1e3),
        ratio=_ratio(reference, samples),
        against={name: _ratio(other, samples) for name, other in (others or {}).items()},
        active_target=contender.target,
        active=active,
        bytes_read=bytes_read if reads else None,
        gigabytes_per_second=bytes_read / float(median) / 1e9 if reads else None,
        floor_share=float(np.median(bytes_read / bandwidth / seconds)) if reads else None,
        error=contender.error,
        samples_ms=tuple(seconds * 1e3),
        bandwidth_gigabytes_per_second=tuple(bandwidth / 1e9),
    )


def rows(contenders: Sequence[Contender], samples: dict[str, Samples], reference: str = REFERENCE) -> tuple[Row, ...]:
    """Figures of all contenders, in their order; ratios are relative to `reference`.

    Where ONNX Runtime has quantized contenders, all are compared with those too.
    """
    quantized = [name for name in map(dense, BLOCKS) if name in samples]
    others = {name: samples[name] for name in quantized if name != reference}
    return tuple(row(contender, samples.get(contender.name), samples[reference], others) for contender in contenders)


def _cells(row: Row) -> list[str]:
    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    low, high = row.ms_quartiles or (None, None)
    spread = f"{cell(low, '.2f')} - {cell(high, '.2f')}"
    return [
        row.name,
        cell(row.ms, ".2f"),
        spread,
        cell(row.ratio, ".2f") + "x",
        *(f"{ratio:.2f}x" for ratio in row.against.values()),
        cell(row.gigabytes_per_second, ".1f"),
        cell(row.floor_share, ".0%"),
        cell(row.active, ".1%"),
    ]


def table_lines(table: Table) -> list[str]:
    """Format the table as text, with a line for contenders that could not run."""
    others = next((row.against for row in table.rows if not row.missing), {})
    ratios = [f"vs {table.reference}", *(f"vs {name.split()[-1]}" for name in others)]
    header = ["contender", "ms", "quartiles", *ratios, "GB/s", "of floor", "active"]
    cells = [header] + [_cells(row) for row in table.rows if not row.missing]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [table.title]
    for line in cells:
        padded = [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    bandwidth = [value for row in table.rows for value in row.bandwidth_gigabytes_per_second]
    if bandwidth:
        low, median, high = np.quantile(bandwidth, [0.25, 0.5, 0.75])
        lines.append(f"floor: what must be read, at {median:.1f} GB/s (quartiles {low:.1f} - {high:.1f})")
    lines += _sampled_lines(table)
    lines += [f"not run: {row.name}: {row.missing}" for row in table.rows if row.missing]
    return lines


def _sampled_lines(table: Table) -> list[str]:
    """Lines on the time to sample a token, compared with taking the likeliest."""
    times = {row.name: np.array(row.samples_ms) for row in table.rows if row.samples_ms}
    pairs = [(name, name.replace(f" {SAMPLED} ", " ")) for name in times if f" {SAMPLED} " in name]
    return [
        f"{name}: {np.median(times[name] / times[greedy]):.2f}x the time of {greedy}, which is greedy"
        for name, greedy in pairs
        if greedy in times
    ]
