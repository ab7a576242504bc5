"""A figure: one specification that the page draws and that files for papers are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from florist.reporting.theme import CONFIG, PALETTE, SHAPES

Row = Mapping[str, Any]
"""One line of the data of a figure: values by column."""

ROWS = alt.NamedData(name="rows")
"""The rows of the figure, as the data of a chart.

A chart names them alone, and the specification brings them along: Altair would hold every value of every row against
its schema, which takes most of a minute for a large run.
"""

Chart = alt.Chart | alt.LayerChart

_WIDTH_IN_FILES = 480
_PNG_SCALE = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A figure and what is said of it.

    Attributes:
        name: its name among the figures of a page: the anchor, and the stem of its files.
        title: what it shows, in a few words.
        caption: how to read it, in a sentence or two.
        alt: what somebody who cannot see it needs to know.
        chart: its chart, without a size across.
        columns: the heads of the columns of its data, by key, for the table beneath it.
        rows: its data.
        wide: whether it has the whole width of the page.
    """

    name: str
    title: str
    caption: str
    alt: str
    chart: Chart
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    rows: Sequence[Row] = ()
    wide: bool = False

    def specification(self, width: int | str = "container") -> dict[str, Any]:
        """The Vega-Lite specification.

        Args:
            width: the width of the plot in pixels, or ``container`` for as wide as the page has room.
        """
        document: dict[str, Any] = self.chart.properties(width=width).to_dict()
        datasets = {**document.get("datasets", {}), ROWS.name: [dict(row) for row in self.rows]}
        return {
            **document,
            "config": CONFIG,
            "datasets": datasets,
            "description": self.alt,
            "autosize": {"type": "fit-x", "contains": "padding"},
        }

    def write(self, folder: Path) -> list[Path]:
        """Write the figure as SVG, PNG and PDF, in black on white; no browser is needed.

        Args:
            folder: an existing folder.
        """
        specification = self.specification(_WIDTH_IN_FILES)
        specification["background"] = "white"
        svg = vl_convert.vegalite_to_svg(specification).replace("currentColor", "black")
        files = {
            "svg": svg.encode(),
            "png": vl_convert.svg_to_png(svg, scale=_PNG_SCALE),
            "pdf": vl_convert.svg_to_pdf(svg),
        }
        for ending, content in files.items():
            (folder / f"{self.name}.{ending}").write_bytes(content)
        return [folder / f"{self.name}.{ending}" for ending in files]


def layered(*charts: Chart) -> alt.LayerChart:
    """Charts on top of each other, the last one in front."""
    return alt.LayerChart(layer=list(charts))


def colours(names: Sequence[str]) -> alt.Scale:
    """A colour for each of some names, in their order."""
    return alt.Scale(domain=list(names), range=[PALETTE[k % len(PALETTE)] for k in range(len(names))])


def shapes(names: Sequence[str]) -> alt.Scale:
    """A shape for each of some names, in their order."""
    return alt.Scale(domain=list(names), range=[SHAPES[k % len(SHAPES)] for k in range(len(names))])


def heat_map(x: alt.X, y: alt.Y, colour: alt.Color, tooltip: Sequence[alt.Tooltip], *, lines: int) -> Chart:
    """A chart of one coloured cell for each row.

    Args:
        x: the column of a cell.
        y: the line of a cell.
        colour: its colour.
        tooltip: what is shown of the cell under the pointer.
        lines: how many lines the chart has, which decides how tall it is.
    """
    height = min(max(22 * lines, 60), 640)
    return alt.Chart(ROWS).mark_rect().encode(x=x, y=y, color=colour, tooltip=list(tooltip)).properties(height=height)
