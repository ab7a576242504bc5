"""How figures look: colours that colour-blind people tell apart, and ink that follows the page."""

from typing import Any

import altair as alt

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
"""The colours of Okabe and Ito (2008) without black and yellow, which vanish on dark or on white."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
"""A shape for each colour, so that nobody has to go by the colour alone."""

SEQUENTIAL = "viridis"
"""From dark to light in even steps of lightness, with colour-blind people in mind."""

LINES = alt.SchemeParams(name=SEQUENTIAL, extent=[0.25, 0.9])
"""The same without its ends: lines of these would vanish on dark or on white."""

DIVERGING = "blueorange"

# The text of the page is light on dark or dark on light, and the figures take its colour: one specification for both.
_INK = "currentColor"

CONFIG: dict[str, Any] = {
    "aria": False,  # the page names each figure as a whole, and has its numbers in a table
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": _INK,
        "titleColor": _INK,
        "domainColor": _INK,
        "tickColor": _INK,
        "gridColor": _INK,
        "gridOpacity": 0.15,
        "domainOpacity": 0.4,
        "tickOpacity": 0.4,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 130,
        "labelOverlap": True,
    },
    "legend": {
        "labelColor": _INK,
        "titleColor": _INK,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "orient": "bottom",
        "columns": 3,
        "labelLimit": 180,
        "symbolLimit": 40,
        "gradientLength": 160,
    },
    "text": {"color": _INK, "fontSize": 11},
    "rule": {"color": _INK},
    "line": {"strokeWidth": 2},
    "point": {"filled": True, "size": 45, "opacity": 1},
    "range": {"category": list(PALETTE)},
}
