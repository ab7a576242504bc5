"""FLoRIST-O and FLoRIST-E among the entries of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from florist.comparison.summary import Line

_FAMILY = "florist"


@dataclass(frozen=True, slots=True)
class OperatingPoints:
    """The named entries and how they were found.

    Attributes:
        points: the name of an operating point, by entry.
        explanation: what the names mean here.
    """

    points: Mapping[str, str] = field(default_factory=dict[str, str])
    explanation: str = ""


def operating_points(lines: Sequence[Line], taus: Mapping[str, float | None]) -> OperatingPoints:
    """Find the two operating points of the FLoRIST paper among entries of the method that differ in tau.

    FLoRIST-O has the best metric, and FLoRIST-E the lowest tau that still matches the best of the other methods. The
    metric is the first one whose direction is known; it is that of the validation examples if there are any.

    Args:
        lines: the summary of the comparison.
        taus: the tau of each entry; None for an entry that has none.

    Returns:
        Nothing where fewer than two entries of FLoRIST differ in tau.

    Source: FLoRIST, arXiv:2506.09199.
    """
    own = [line for line in lines if line.method == _FAMILY and taus.get(line.name) is not None and line.seeds]
    if len({taus[line.name] for line in own}) < 2:
        return OperatingPoints()
    apart = all(line.validation for line in own)
    metric = next((name for name, measured in own[0].metrics.items() if measured.lower_is_better is not None), None)
    if metric is None:
        return OperatingPoints()
    sign = -1.0 if own[0].metrics[metric].lower_is_better else 1.0

    def gain(line: Line) -> float | None:
        measured = (line.validation if apart else line.metrics).get(metric)
        return sign * measured.value.mean if measured is not None else None

    gains = {line.name: found for line in own if (found := gain(line)) is not None}
    others = [found for line in lines if line.method != _FAMILY and line.seeds and (found := gain(line)) is not None]
    if not gains:
        return OperatingPoints()
    best = max(gains, key=lambda name: gains[name])
    points = {best: "FLoRIST-O"}
    by_tau = sorted((tau, name) for name in gains if (tau := taus[name]) is not None)
    efficient = next((name for _, name in by_tau if others and gains[name] >= max(others)), None)
    if efficient is not None:
        points[efficient] = "FLoRIST-O, FLoRIST-E" if efficient == best else "FLoRIST-E"
    where = "validation examples" if apart else "test examples, since there are no validation examples to choose by"
    none = "" if efficient is not None or not others else " No entry of FLoRIST matches the best of the other methods."
    return OperatingPoints(
        points,
        f"FLoRIST-O is the entry of FLoRIST with the best mean {metric.replace('_', ' ')}, and FLoRIST-E the one of "
        f"the lowest tau whose mean is at least that of the best other method, both by the {where}.{none} Neither says "
        "that the difference exceeds what the seeds make.",
    )
