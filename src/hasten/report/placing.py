"""A plot's place on a page: what is drawn there, in words, for whom it is not drawn."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from typing import Any

from plotly.graph_objects import Figure

NO_SCRIPT = (
    '<noscript><p class="note">The plots are drawn by a script within this page, and scripts are turned off here. Their'
    " figures are in the tables.</p></noscript>\n"
)
"""What a page with plots says where no script runs."""


def placed(name: str, figure: Figure) -> str:
    """Where a page's script draws the figure called ``name``."""
    told = html.escape(alternative_text(figure))
    height = figure.layout.height or 420
    return f'<div class="plot" id="{name}" role="img" aria-label="{told}" style="min-height:{height}px"></div>'


def alternative_text(figure: Figure) -> str:
    """What a figure shows, in a sentence or two: its kind, its axes with their ranges, and its series.

    >>> from plotly.graph_objects import Bar, Scatter
    >>> alternative_text(Figure(Scatter(x=[1, 2], y=[5, 3], mode="markers", name="tried")))
    'Scatter plot. tried: 2 points, from 1 to 2 across, from 3 to 5 up.'
    """
    kinds = {_kind(trace): None for trace in figure.data}
    axes = [_plain(text) for axis in (*figure.select_xaxes(), *figure.select_yaxes()) if (text := axis.title.text)]
    told = f"{' and '.join(kinds) or 'Empty plot'}{' of ' + ', '.join(dict.fromkeys(axes)) if axes else ''}."
    series = [text for trace in figure.data if (text := _series(trace))]
    return _capital(" ".join([told, *series[:_MOST], *([f"And {len(series) - _MOST} more."] * (len(series) > _MOST))]))


_MOST = 12


def _kind(trace: Any) -> str:
    if trace.type == "bar":
        return "bar chart"
    if trace.type != "scatter":
        return f"plot of kind {trace.type}"
    return "scatter plot" if _marked(trace) else "line chart"


def _marked(trace: Any) -> bool:
    return trace.type == "scatter" and "markers" in (trace.mode or "")


def _series(trace: Any) -> str:
    name = _plain(trace.name or "")
    if not name or trace.showlegend is False:
        return ""
    noun = {"bar": "bars"}.get(trace.type, "points" if _marked(trace) else "ends")
    across, up = _range(trace.x, "across"), _range(trace.y, "up")
    values = ", ".join(text for text in (across, up) if text)
    count = 0 if trace.x is None else len(trace.x)
    return f"{name}: {count} {noun if count != 1 else noun[:-1]}{', ' + values if values else ''}."


def _range(values: Iterable[Any] | None, where: str) -> str:
    numbers = [v for v in (() if values is None else values) if isinstance(v, int | float) and math.isfinite(v)]
    if not numbers:
        return ""
    return f"from {min(numbers):.3g} to {max(numbers):.3g} {where}"


def _plain(text: str) -> str:
    """A label without the little HTML that Plotly reads."""
    return html.unescape(re.sub(r"</?(?:b|i|br|sub|sup|span)[^<>]*>", " ", text)).strip()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
