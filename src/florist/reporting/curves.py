"""Figures of what was measured: by round, against the bytes that it took, and against tau."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from florist.comparison.intervals import Estimate
from florist.reporting.figures import ROWS, Chart, Figure, Row, colours, layered, shapes

_IN_BYTES = "datum.label ? datum.label + 'B' : ''"
"""Writes a tick of a byte axis; a logarithmic axis has ticks without a label."""

_DODGE = 0.03
"""How far apart the series are drawn within a round, in rounds."""

MOST_METRICS = 4
"""Figures are drawn of so many metrics, the first ones; the others are in the table."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured after a round.

    Attributes:
        series: whose it is: a method, or an entry of a comparison.
        round: the round; 0 is the base model.
        value: the metric, over the seeds where there are several.
        traffic: what was sent and received so far by all clients together, in bytes.
    """

    series: str
    round: int
    value: Estimate
    traffic: float

    @property
    def row(self) -> Row:
        """The point as a line of data. An interval over two seeds says nothing, and is left out."""
        shown = self.value.count > 2
        return {
            "series": self.series,
            "round": self.round,
            "value": self.value.mean,
            "low": self.value.low if shown else None,
            "high": self.value.high if shown else None,
            "traffic": self.traffic,
        }


@dataclass(frozen=True, slots=True)
class Marked:
    """A point of the trade-off that is named.

    Attributes:
        label: its name.
        traffic: the bytes of a whole run.
        value: the metric at its end.
    """

    label: str
    traffic: float
    value: float


def with_direction(metric: str, lower_is_better: Mapping[str, bool]) -> str:
    """The name of a metric for people, and which way it gets better where that is known."""
    name, lower = metric.replace("_", " "), lower_is_better.get(metric)
    return name if lower is None else f"{name} ({'lower' if lower else 'higher'} is better)"


def metric_by_round(metric: str, axis: str, points: Sequence[Point]) -> Figure | None:
    """The metric by round, a line for each series, with 95% intervals where there are three seeds or more."""
    points = [point for point in points if math.isfinite(point.value.mean)]
    if not points:
        return None
    names = _names(points)
    # A little apart, so that the intervals of one round do not cover each other.
    aside = {name: _DODGE * (k - (len(names) - 1) / 2) for k, name in enumerate(names)}
    rows = [{**point.row, "at": point.round + aside[point.series]} for point in points]
    base = _colored(names).encode(
        x=alt.X(
            "at:Q",
            title="round",
            axis=alt.Axis(format="d", values=_ticks([point.round for point in points])),
            scale=alt.Scale(nice=False, padding=8),
        )
    )
    layers = [_line(base, axis, names)]
    with_intervals = any(row["low"] is not None for row in rows)
    if with_intervals:
        bar = base.mark_rule(strokeWidth=1.5, opacity=0.7).encode(y=alt.Y("low:Q", title=axis), y2="high:Q")
        layers = [bar.transform_filter("isValid(datum.low)"), *layers]
    ends = "; ".join(f"{name} ends at {_last(points, name):.4g}" for name in names[:8])
    note = " Bars are 95% intervals of the mean over the seeds." if with_intervals else ""
    return Figure(
        name=f"round-{slug(metric)}",
        title=f"{metric.replace('_', ' ')} by round",
        caption=f"Round 0 is the base model without an adapter.{note}",
        alt=f"Line chart of {metric} by round. {ends}.",
        chart=layered(*layers).properties(height=260),
        columns={"series": "of", "round": "round", "value": metric, "low": "low", "high": "high"},
        rows=rows,
    )


def metric_against_bytes(
    metric: str, axis: str, points: Sequence[Point], marked: Sequence[Marked] = ()
) -> Figure | None:
    """The trade-off: the metric against all bytes so far, on a logarithmic axis, with some points named."""
    points = [point for point in points if point.traffic > 0 and math.isfinite(point.value.mean)]
    if not points:
        return None
    rows, names = [point.row for point in points], _names(points)
    x_axis = alt.X(
        "traffic:Q",
        title="bytes so far, all clients (log scale)",
        scale=alt.Scale(type="log", nice=False, padding=24),
        axis=alt.Axis(format="~s", labelExpr=_IN_BYTES, tickCount=6),
    )
    layers: list[Chart] = [_line(_colored(names).encode(x=x_axis), axis, names)]
    if marked:
        own = [{"label": one.label, "traffic": one.traffic, "value": one.value} for one in marked]
        at = alt.Chart(alt.Data(values=alt.InlineDataset(own))).encode(x=x_axis, y=alt.Y("value:Q", title=axis))
        ring = at.mark_point(filled=False, size=190, strokeWidth=2, color="currentColor", shape="circle")
        layers += [ring, at.mark_text(dy=-15, align="center", fontWeight="bold").encode(text="label:N")]
    ends = "; ".join(
        f"{name} ends at {_last(points, name):.4g} after {max(p.traffic for p in points if p.series == name):.3g} bytes"
        for name in names[:8]
    )
    return Figure(
        name=f"bytes-{slug(metric)}",
        title=f"{metric.replace('_', ' ')} against bytes",
        caption="A point for each round: what was reached, and what all clients together had sent and received until "
        "then. Further left is cheaper.",
        alt=f"Line chart of {metric} against the bytes of all clients, on a logarithmic axis. {ends}.",
        chart=layered(*layers).properties(height=320),
        wide=True,
        columns={"series": "of", "round": "round", "traffic": "bytes so far", "value": metric},
        rows=rows,
    )


def bytes_by_round(rows: Sequence[Row]) -> Figure | None:
    """Bytes up and down by round.

    Args:
        rows: a line for each round and direction: ``round``, ``direction`` and ``nbytes``.
    """
    if not any(row["nbytes"] for row in rows):
        return None
    directions = ["up: clients to server", "down: server to clients"]
    chart = (
        alt.Chart(ROWS)
        .mark_bar()
        .encode(
            x=alt.X("round:O", title="round", axis=alt.Axis(labelAngle=0)),
            y=alt.Y(
                "nbytes:Q",
                title="bytes, all clients",
                axis=alt.Axis(format="~s", labelExpr=_IN_BYTES),
            ),
            color=alt.Color("direction:N", title=None, scale=colours(directions)),
            tooltip=["round:O", "direction:N", alt.Tooltip("nbytes:Q", format=",", title="bytes")],
        )
        .properties(height=220)
    )
    totals = {name: sum(row["nbytes"] for row in rows if row["direction"] == name) for name in directions}
    return Figure(
        name="bytes-by-round",
        title="bytes by round",
        caption="As they were sent, catch-up of clients that had missed rounds included.",
        alt="Stacked bars of the bytes of each round. In all, "
        + " and ".join(f"{total:.3g} bytes {name}" for name, total in totals.items())
        + ".",
        chart=chart,
        columns={"round": "round", "direction": "direction", "nbytes": "bytes"},
        rows=rows,
    )


def against_tau(name: str, title: str, axis: str, rows: Sequence[Row], caption: str) -> Figure | None:
    """A quantity against tau.

    Args:
        name: the name of the figure.
        title: its title.
        axis: the title of the vertical axis.
        rows: ``series``, ``tau`` and ``value``, and ``low`` and ``high`` where there is an interval.
        caption: what is said of it.
    """
    rows = [row for row in rows if row["value"] is not None and math.isfinite(row["value"])]
    if len({row["tau"] for row in rows}) < 2:
        return None
    names = list(dict.fromkeys(str(row["series"]) for row in rows))
    base = _colored(names).encode(
        x=alt.X("tau:Q", title="tau, the fraction of the energy that is kept", scale=alt.Scale(zero=False))
    )
    y = alt.Y("value:Q", title=axis, scale=alt.Scale(zero=False))
    layers: list[Chart] = [
        base.mark_line().encode(y=y),
        base.mark_point().encode(
            y=y, shape=alt.Shape("series:N", title=None, scale=shapes(names)), tooltip=_tips("tau:Q")
        ),
    ]
    if any(row.get("low") is not None for row in rows):
        bars = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", title=axis), y2="high:Q")
        layers.insert(0, bars.transform_filter("isValid(datum.low)"))
    low, high = min(rows, key=lambda row: row["tau"]), max(rows, key=lambda row: row["tau"])
    return Figure(
        name=name,
        title=title,
        caption=caption,
        alt=f"Line chart of {axis} against tau: {low['value']:.4g} at tau {low['tau']:g}, {high['value']:.4g} at tau "
        f"{high['tau']:g}.",
        chart=layered(*layers).properties(height=260),
        columns={"series": "of", "tau": "tau", "value": axis},
        rows=rows,
    )


def by_round(
    name: str, title: str, axis: str, rows: Sequence[Row], caption: str, *, log: bool = False
) -> Figure | None:
    """A quantity by round.

    Args:
        name: the name of the figure.
        title: its title.
        axis: the title of the vertical axis.
        rows: ``series``, ``round`` and ``value``; a log axis leaves out what is not positive.
        caption: what is said of it.
        log: whether the vertical axis is logarithmic.
    """
    rows = [row for row in rows if math.isfinite(row["value"]) and (row["value"] > 0 or not log)]
    if not any(row["value"] for row in rows):
        return None
    names = list(dict.fromkeys(str(row["series"]) for row in rows))
    base = _colored(names).encode(
        x=alt.X("round:Q", title="round", axis=alt.Axis(format="d", values=_ticks([row["round"] for row in rows])))
    )
    y = alt.Y("value:Q", title=axis, scale=alt.Scale(type="log") if log else alt.Scale())
    last = "; ".join(
        f"{series} ends at {[row['value'] for row in rows if row['series'] == series][-1]:.3g}" for series in names[:8]
    )
    return Figure(
        name=name,
        title=title,
        caption=caption,
        alt=f"Line chart of {axis} by round. {last}.",
        chart=layered(
            base.mark_line().encode(y=y),
            base.mark_point().encode(
                y=y, shape=alt.Shape("series:N", title=None, scale=shapes(names)), tooltip=_tips("round:Q")
            ),
        ).properties(height=220),
        columns={"series": "of", "round": "round", "value": axis},
        rows=rows,
    )


def _colored(names: Sequence[str]) -> alt.Chart:
    legend = alt.Legend(symbolOpacity=1) if len(names) > 1 else None
    return alt.Chart(ROWS).encode(color=alt.Color("series:N", title=None, scale=colours(names), legend=legend))


def _line(base: alt.Chart, axis: str, names: Sequence[str]) -> Chart:
    y = alt.Y("value:Q", title=axis, scale=alt.Scale(zero=False))
    legend = alt.Legend(symbolOpacity=1) if len(names) > 1 else None
    points = base.mark_point().encode(
        y=y,
        shape=alt.Shape("series:N", title=None, scale=shapes(names), legend=legend),
        tooltip=_tips("round:Q", "traffic:Q"),
    )
    return layered(base.mark_line().encode(y=y, order="round:Q"), points)


def _tips(*more: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("series:N", title="of"),
        *(alt.Tooltip(each) for each in more),
        alt.Tooltip("value:Q", format=".4g"),
    ]


def _ticks(rounds: Sequence[int]) -> list[int]:
    """Whole numbers to write beneath an axis of rounds, about a dozen at most."""
    return list(range(min(rounds), max(rounds) + 1, max(1, -(-(max(rounds) - min(rounds)) // 12))))


def _names(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.series for point in points))


def _last(points: Sequence[Point], series: str) -> float:
    return [point.value.mean for point in points if point.series == series][-1]


def slug(name: str) -> str:
    """A name of a metric as a part of the name of a figure, which is an anchor and a file."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")[:40] or "metric"
