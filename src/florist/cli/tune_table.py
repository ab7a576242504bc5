"""What ``florist tune`` prints and writes of a sweep: a table, JSON and CSV."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.table import Table

from florist.cli.output import plain_table
from florist.one_shot.tuning import Goal, Point, evaluations

_BAR = 16
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Tuned:
    """The thresholds that were tried, and the two that were picked.

    Attributes:
        source: what was tuned, as the JSON document says it.
        goal: what the picks were made by, with the baseline if one was given or measured.
        baseline_runs: the runs that were measured for a baseline.
        bisected: whether thresholds were left out.
        points: the thresholds that were evaluated, the lowest first.
        optimal: FLoRIST-O.
        efficient: FLoRIST-E; None if the baseline is out of reach.
        codec: the name of the codec of broadcasts, from the configuration.
        sent_bytes: the bytes of the factors as that codec sends them, by tau.
    """

    source: Mapping[str, Any]
    goal: Goal
    baseline_runs: tuple[str, ...]
    bisected: bool
    points: tuple[Point, ...]
    optimal: Point
    efficient: Point | None
    codec: str
    sent_bytes: Mapping[float, int]

    @cached_property
    def reference(self) -> float:
        """The value that FLoRIST-E had to match."""
        return self.goal.reference(self.points)

    @property
    def out_of_reach(self) -> str:
        """Why there is no FLoRIST-E."""
        return (
            f"no tau that was tried reaches {_words(self.goal.metric)} {self.reference:.4g} within "
            f"{self.goal.margin:g}; the best is {self.goal.value(self.optimal):.4g} at tau {self.optimal.tau:g}; raise "
            "--margin, or compare with tau = 1"
        )

    def table(self) -> Table:
        """A line for every threshold; the bar is longer where the metric is better."""
        others = [name for name in self.points[0].metrics if name != self.goal.metric]
        packed = [f"MB in {self.codec}"] if self._is_packed else []
        heads = ("tau", "", "total rank", "MB", *packed, "relative error", *(_words(name) for name in others))
        table = plain_table(*heads, _words(self.goal.metric), "", words=(1, len(heads) + 1))
        gains = [self.goal.gain(self.goal.value(point)) for point in self.points]
        for point, gain in zip(self.points, gains, strict=True):
            table.add_row(
                f"{point.tau:g}",
                self._mark(point),
                str(point.total_rank),
                f"{point.nbytes / 1e6:.3g}",
                *([f"{self.sent_bytes[point.tau] / 1e6:.3g}"] if self._is_packed else []),
                f"{point.relative_error:.2e}",
                *(f"{point.metrics[name]:.4g}" for name in others),
                f"{self.goal.value(point):.4g}",
                _bar(gain, gains),
            )
        return table

    def summary(self) -> list[str]:
        """Lines that say the picks, what they were compared with, and how many evaluations that took."""
        lines = [f"FLoRIST-O: {self._picked(self.optimal)}" + (", the best that was tried" if self.bisected else "")]
        against = "the baseline" if self.goal.baseline is not None else "tau = 1"
        if self.efficient is None:
            lines.append(f"FLoRIST-E: {self.out_of_reach}")
        else:
            limit = f"within {self.goal.margin:g} of {self.reference:.4g}, {against}"
            lines.append(f"FLoRIST-E: {self._picked(self.efficient)}, {limit}")
        lines += self._hint()
        count = evaluations(self.points)
        lines.append(
            f"{count} {'evaluation' if count == 1 else 'evaluations'} on the validation examples"
            + (", if the metric gets no worse as tau grows" if self.bisected else "")
        )
        return lines

    def _hint(self) -> list[str]:
        """What a margin would give where none was given and nothing below the highest tau matched."""
        lower = [point for point in self.points if point.total_rank < self.points[-1].total_rank]
        if self.goal.margin > 0 or self.efficient is not self.points[-1] or not lower:
            return []
        gap, nearest = min(
            ((self.goal.gain(self.reference) - self.goal.gain(self.goal.value(point)), point) for point in lower),
            key=lambda each: (each[0], each[1].tau),
        )
        if not math.isfinite(gap):
            return []
        metric = _words(self.goal.metric)
        told = (
            f"without a margin, no lower tau that was tried matches: {metric} may be no worse at all; --margin lets it "
            f"fall short, and tau {nearest.tau:g} (total rank {nearest.total_rank}) falls short by {gap:.2g}"
        )
        return [told]

    def document(self) -> dict[str, Any]:
        """All of it as one JSON document, with null for what is no number."""
        return {
            "source": self.source,
            "metric": self.goal.metric,
            "lower_is_better": self.goal.lower_is_better,
            "split": "validation",
            "baseline": self.goal.baseline,
            "baseline_runs": self.baseline_runs,
            "reference": _number(self.reference),
            "margin": self.goal.margin,
            "bisected": self.bisected,
            "codec": self.codec,
            "points": [self._described(point) for point in self.points],
            "florist_o": self._described(self.optimal),
            "florist_e": self._described(self.efficient) if self.efficient is not None else None,
            "evaluations": evaluations(self.points),
        }

    def csv(self) -> str:
        """A line of CSV for every threshold."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        names = list(self.points[0].metrics)
        lines.writerow(["tau", "total_rank", "bytes", "sent_bytes", "relative_error", *names, "pick"])
        for point in self.points:
            values = [point.metrics[name] for name in names]
            nbytes = (point.nbytes, self.sent_bytes[point.tau])
            lines.writerow([point.tau, point.total_rank, *nbytes, point.relative_error, *values, self._mark(point)])
        return text.getvalue()

    def _mark(self, point: Point) -> str:
        return "O" * (point is self.optimal) + "E" * (point is self.efficient)

    def _picked(self, point: Point) -> str:
        value = f"{_words(self.goal.metric)} {self.goal.value(point):.4g}"
        packed = f" ({self.sent_bytes[point.tau] / 1e6:.3g} in {self.codec})" if self._is_packed else ""
        return f"tau {point.tau:g}, {value}, total rank {point.total_rank}, {point.nbytes / 1e6:.3g} MB{packed}"

    @property
    def _is_packed(self) -> bool:
        return self.codec != "float32"  # in which the factors are written anyway

    def _described(self, point: Point) -> dict[str, Any]:
        return {
            "tau": point.tau,
            "total_rank": point.total_rank,
            "bytes": point.nbytes,
            "sent_bytes": self.sent_bytes[point.tau],
            "relative_error": point.relative_error,
            "metrics": {name: _number(value) for name, value in point.metrics.items()},
            "ranks": dict(point.ranks),
        }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _bar(gain: float, gains: list[float]) -> str:
    """A bar of no width for the worst of the points, and of the whole width for the best."""
    known = [each for each in gains if math.isfinite(each)]
    if not math.isfinite(gain):
        return ""
    low, high = min(known), max(known)
    eighths = round(8 * _BAR * (gain - low) / (high - low)) if high > low else 8 * _BAR
    whole, rest = divmod(eighths, 8)
    return _EIGHTHS[8] * whole + (_EIGHTHS[rest] if rest else "")
