"""A timeline as a Gantt chart."""

from __future__ import annotations

from plotly.graph_objects import Bar, Figure

from hasten.cost.timeline import Timeline
from hasten.errors import HastenError
from hasten.report import quantities as q
from hasten.report.plots import SERIES, escaped, new_figure

_MOST = 5000


def gantt(timeline: Timeline, most: int = _MOST) -> Figure:
    """A row for each lane, a bar for each activity, a colour for each label.

    Args:
        timeline: what ran when.
        most: bars; a browser is slow with more.

    Raises:
        HastenError: there are more.
    """
    if len(timeline.spans) > most:
        raise HastenError(
            f"a chart of {len(timeline.spans):,} bars is more than a browser draws: show at most {most:,} activities"
        )
    lanes = timeline.lanes
    figure = new_figure(
        xaxis={"title": {"text": "time"}, "tickformat": "~s", "ticksuffix": "s", "rangemode": "tozero"},
        yaxis={"automargin": True, "categoryorder": "array", "categoryarray": [escaped(n) for n in reversed(lanes)]},
        barmode="overlay",
        height=max(220, 130 + 44 * len(lanes)),
    )
    labels = list(dict.fromkeys(s.activity.label for s in timeline.spans))
    for number, label in enumerate(labels):
        spans = [s for s in timeline.spans if s.activity.label == label]
        figure.add_trace(
            Bar(
                orientation="h",
                y=[escaped(s.activity.lane) for s in spans],
                x=[s.seconds for s in spans],
                base=[s.begin for s in spans],
                name=escaped(label),
                showlegend=bool(label),
                marker={"color": SERIES[number % len(SERIES)], "line": {"width": 0.5}},
                text=[
                    f"{escaped(s.activity.name)}<br>{q.seconds(s.begin)} to {q.seconds(s.end)}"
                    f"<br>{q.seconds(s.seconds)}"
                    for s in spans
                ],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
        )
    return figure
