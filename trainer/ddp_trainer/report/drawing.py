"""The strokes that all charts share: lines, marks, fault marks, time axes and the finish that makes them look alike.

Colours are names of the page's CSS variables (`var(--accent)`); the page's script resolves them, so that one palette serves light, dark and
print. Text that comes from a run goes through `label`, because plotly reads a few HTML tags in text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any, TypeVar

import plotly.graph_objects as go

from ddp_trainer.report.numbers import duration
from ddp_trainer.report.story import Run

Figure = dict[str, Any]
Point = TypeVar("Point")

MOST_POINTS = 1500
"""Points per curve: more than a screen has pixels for, and it bounds the page however long the run was."""
SMOOTHING_PARTS = 20
"""A smoothed curve averages over a tenth of the run, this part to each side: single batches are noisy."""
CHART_HEIGHT = 280
TICK_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 604800)
"""Distances between the ticks of a time axis that people can count in."""
MOST_TICKS = 8
FONT = "Inter, 'Segoe UI', system-ui, -apple-system, 'Helvetica Neue', Arial, sans-serif"
"""As in the page's style sheet."""
AXIS = {
    "gridcolor": "var(--grid)",
    "linecolor": "var(--line)",
    "zeroline": False,
    "ticks": "",
    "tickfont": {"color": "var(--muted)", "size": 11.5},
    "title": {"font": {"color": "var(--muted)", "size": 12}, "standoff": 10},
    "automargin": True,
}
STEP_TICKS = {"separatethousands": True, "exponentformat": "none"}


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Every k-th point and the last one, at most `most` + 1."""
    stride = max(1, -(-len(points) // most))
    kept = list(points[::stride])
    return kept if not points or (len(points) - 1) % stride == 0 else [*kept, points[-1]]


def smoothed(values: Sequence[float]) -> list[float]:
    """A centred mean, so that the curve does not lag behind its points; one-sided at the ends."""
    reach = max(1, len(values) // SMOOTHING_PARTS)
    return [fmean(values[max(0, index - reach) : index + reach + 1]) for index in range(len(values))]


def label(text: str, longest: int = 28) -> str:
    """Text of a run, harmless and short enough for an axis."""
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def add_line(
    figure: go.Figure,
    xs: Sequence[float],
    ys: Sequence[float | None],
    name: str,
    color: str,
    *,
    width: float = 2.0,
    dash: str = "solid",
    mode: str = "lines",
    hover: str | None = None,
    fill: str | None = None,
    legend: bool = True,
) -> None:
    """One curve; `fill` is the colour of the area below it."""
    figure.add_scatter(
        x=list(xs),
        y=list(ys),
        name=name,
        mode=mode,
        line={"color": color, "width": width, "dash": dash},
        marker={"size": 6},
        hovertemplate=hover,
        fill="tozeroy" if fill else None,
        fillcolor=fill,
        showlegend=legend,
    )


def add_marks(figure: go.Figure, points: Sequence[tuple[float, float]], name: str, symbol: str, color: str, *, size: int = 9) -> None:
    """Symbols at (run seconds, step)."""
    figure.add_scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        name=name,
        mode="markers",
        marker={"symbol": symbol, "size": size, "color": color, "line": {"color": "var(--card)", "width": 1.2}},
        customdata=[duration(x) for x, _ in points],
        hovertemplate=f"{name} at step %{{y:,}}, after %{{customdata}}<extra></extra>",
    )


def add_faults(figure: go.Figure, run: Run) -> None:
    """On an axis of steps: a line where a fault struck, shaded over the steps that had to be done again."""
    for incident in run.incidents:
        if incident.step is None:
            continue
        if incident.resumed_step is not None and incident.resumed_step < incident.step:
            figure.add_vrect(x0=incident.resumed_step, x1=incident.step, fillcolor="var(--bad-soft)", line_width=0, layer="below")
        figure.add_vline(x=incident.step, line={"color": "var(--bad)", "width": 1.2, "dash": "dot"}, layer="below")


def add_recoveries(figure: go.Figure, run: Run) -> None:
    """On an axis of run time: the time from each standstill until training went on."""
    for incident in run.incidents:
        end = incident.ended_seconds(run.wall_seconds)
        # The thin outline keeps a recovery of one second visible in a run of hours.
        figure.add_vrect(
            x0=incident.began_seconds, x1=end, fillcolor="var(--bad-soft)", line={"color": "var(--bad)", "width": 0.8}, layer="below"
        )


def over_run_time(run: Run) -> dict[str, Any]:
    """The x axis of run time, with ticks people can count in."""
    distance = next((t for t in TICK_SECONDS if run.wall_seconds / t <= MOST_TICKS), run.wall_seconds / MOST_TICKS)
    ticks = [distance * i for i in range(int(run.wall_seconds / distance) + 1)]
    return {"tickvals": ticks, "ticktext": [duration(t) for t in ticks], "range": [0, run.wall_seconds * 1.01]}


def over_steps(figure: go.Figure, **layout: Any) -> Figure:
    """Finish a chart whose x axis is steps."""
    figure.update_layout(hovermode="x unified", xaxis={"title": {"text": "step"}, **STEP_TICKS}, **layout)
    return finished(figure)


def finished(figure: go.Figure, height: int = CHART_HEIGHT) -> Figure:
    """The common look, as plain JSON values."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 52, "r": 14, "t": 10 if figure.layout.showlegend is False else 34, "b": 40},
        font={"family": FONT, "size": 12.5, "color": "var(--ink)"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.0,
            "xanchor": "left",
            "yanchor": "bottom",
            "font": {"size": 12, "color": "var(--muted)"},
        },
        hoverlabel={"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
    )
    for axis in figure.select_xaxes():
        axis.update(AXIS, overwrite=False)
    for axis in figure.select_yaxes():
        axis.update(AXIS, overwrite=False)
    plain: Figure = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain
