"""Figures of where an update lives: singular values, ranks by layer and projection, rank against tau."""

import re
from collections.abc import Mapping

import altair as alt

from florist.linalg.spectrum import Spectrum
from florist.one_shot.inspection import kind
from florist.ranks import EnergyThreshold
from florist.reporting.curves import against_tau
from florist.reporting.figures import ROWS, Figure, Row, heat_map
from florist.reporting.theme import LINES, SEQUENTIAL

TAUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)

MOST_KINDS = 8
"""Singular values are drawn of so many kinds of modules, those with the most energy."""

MOST_VALUES = 128
"""Of a module, so many of the largest singular values are drawn."""

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def layer(module: str) -> int | None:
    """The number of a module's layer, the first number in its name; None where there is none."""
    found = _LAYER.search(module.partition("[")[0])
    return int(found[1]) if found else None


def singular_values(spectra: Mapping[str, Spectrum], whose: str) -> list[Figure]:
    """The singular values by layer, a figure for each kind of module, as figure 2 of the FLoRIST paper shows them."""
    energies: dict[str, float] = {}
    for name, one in spectra.items():
        energies[kind(name)] = energies.get(kind(name), 0.0) + one.total_energy
    chosen = sorted(energies, key=lambda each: -energies[each])[:MOST_KINDS]
    figures = (_values_of(each, spectra, whose) for each in sorted(chosen))
    return [figure for figure in figures if figure is not None]


def ranks_by_layer(ranks: Mapping[str, int], caption: str) -> Figure | None:
    """The rank of every layer and projection, as figure 5 of the FLoRIST paper shows it.

    Modules of one kind in one layer, experts for instance, are added up.
    """
    cells: dict[tuple[int, str], int] = {}
    for name, rank in ranks.items():
        number = layer(name)
        if number is not None:
            cells[number, kind(name)] = cells.get((number, kind(name)), 0) + rank
    if not cells:
        return None
    rows = [{"layer": number, "projection": each, "rank": rank} for (number, each), rank in sorted(cells.items())]
    least, most = min(rows, key=lambda row: row["rank"]), max(rows, key=lambda row: row["rank"])
    return Figure(
        name="rank-by-layer",
        title="kept rank by layer and projection",
        caption=caption,
        alt=f"Heat map of the rank of {len(rows)} modules by layer and projection: from {least['rank']} "
        f"({least['projection']} of layer {least['layer']}) to {most['rank']} ({most['projection']} of layer "
        f"{most['layer']}).",
        chart=heat_map(
            _layers(),
            _projections(),
            alt.Color("rank:Q", title="rank", scale=alt.Scale(scheme=SEQUENTIAL)),
            [alt.Tooltip("layer:O"), alt.Tooltip("projection:N"), alt.Tooltip("rank:Q")],
            lines=len({row["projection"] for row in rows}),
        ),
        columns={"layer": "layer", "projection": "projection", "rank": "rank"},
        rows=rows,
    )


def errors_by_layer(errors: Mapping[str, float]) -> Figure | None:
    """What an aggregation lost of every layer and projection, as a fraction of the norm of its exact update."""
    rows = [
        {"layer": number, "projection": kind(name), "error": error}
        for name, error in errors.items()
        if (number := layer(name)) is not None
    ]
    if not any(row["error"] for row in rows):
        return None
    worst = max(rows, key=lambda row: row["error"])
    return Figure(
        name="error-by-layer",
        title="relative error by layer and projection",
        caption="The norm of what was left out over the norm of the exact weighted sum, module by module.",
        alt=f"Heat map of the relative error of {len(rows)} modules. The largest is {worst['error']:.3g}, of "
        f"{worst['projection']} in layer {worst['layer']}.",
        chart=heat_map(
            _layers(),
            _projections(),
            alt.Color(
                "error:Q", title="relative error", scale=alt.Scale(scheme=SEQUENTIAL), legend=alt.Legend(format=".0%")
            ),
            [alt.Tooltip("layer:O"), alt.Tooltip("projection:N"), alt.Tooltip("error:Q", format=".2%")],
            lines=len({row["projection"] for row in rows}),
        ),
        columns={"layer": "layer", "projection": "projection", "error": "relative error"},
        rows=rows,
    )


def rank_against_tau(spectra: Mapping[str, Spectrum], whose: str) -> Figure | None:
    """The total rank that every tau would keep, by kind of module, as figure 4 of the FLoRIST paper shows it."""
    rows: list[Row] = []
    for tau in TAUS:
        kept: dict[str, int] = {}
        for name, rank in EnergyThreshold(tau)(spectra).items():
            kept[kind(name)] = kept.get(kind(name), 0) + rank
        rows += [{"series": each, "tau": tau, "value": rank} for each, rank in sorted(kept.items())]
    return against_tau(
        "rank-against-tau",
        "rank against tau",
        "total rank",
        rows,
        f"What every tau would keep of {whose}, summed over the layers, without training again.",
    )


def _values_of(projection: str, spectra: Mapping[str, Spectrum], whose: str) -> Figure | None:
    rows: list[Row] = [
        {"module": name, "layer": layer(name), "index": index, "value": float(f"{value:.5g}")}
        for name, one in spectra.items()
        if kind(name) == projection
        for index, value in enumerate(one.S[: min(one.numerical_rank, MOST_VALUES)].tolist(), start=1)
    ]
    if not rows:
        return None
    numbered = all(row["layer"] is not None for row in rows)
    colour = (
        alt.Color("layer:Q", title="layer", scale=alt.Scale(scheme=LINES), legend=alt.Legend(format="d", tickMinStep=1))
        if numbered
        else alt.Color("module:N", title=None)
    )
    chart = (
        alt.Chart(ROWS)
        .mark_line(strokeWidth=1.5, opacity=0.9, point=alt.OverlayMarkDef(size=14))
        .encode(
            x=alt.X("index:Q", title="index of the singular value", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y(
                "value:Q",
                title="singular value (log scale)",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format=".1~e", tickCount=5),
            ),
            color=colour,
            detail="module:N",
            tooltip=["module:N", "index:Q", alt.Tooltip("value:Q", format=".3g")],
        )
        .properties(height=230)
    )
    modules = len({row["module"] for row in rows})
    largest = max(rows, key=lambda row: row["value"])
    return Figure(
        name=f"singular-values-{re.sub('[^A-Za-z0-9]+', '-', projection).strip('-')[:40]}",
        title=f"singular values of {projection}",
        caption=f"Of {whose}, a line for each layer.",
        alt=f"Line chart of the singular values of {projection} in {modules} modules, on a logarithmic axis. The "
        f"largest is {largest['value']:.3g}, of {largest['module']}.",
        chart=chart,
        columns={"module": "module", "index": "index", "value": "singular value"},
        rows=rows,
    )


def _layers() -> alt.X:
    return alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))


def _projections() -> alt.Y:
    return alt.Y("projection:N", title=None, sort=None)
