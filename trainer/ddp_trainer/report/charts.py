"""The report's charts: pure functions from the facts of a run to plotly figures, no file and no page.

A chart without data is None, and the page says so in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import plotly.graph_objects as go

from ddp_trainer.report.drawing import (
    STEP_TICKS,
    Figure,
    add_faults,
    add_line,
    add_marks,
    add_recoveries,
    finished,
    label,
    over_run_time,
    over_steps,
    smoothed,
    thinned,
)
from ddp_trainer.report.model import Evaluation
from ddp_trainer.report.numbers import duration, percent
from ddp_trainer.report.story import Run
from ddp_trainer.telemetry.incidents import Incident

X = TypeVar("X")
Y = TypeVar("Y")

MOST_MARKS = 300
"""Markers of one kind in the time line; more would be a band."""
MOST_CLASSES = 24
"""Bars and matrix cells beyond this cannot be read; the hardest classes are shown."""
CELL_TEXT_CLASSES = 12
"""Up to this many classes a cell of the matrix is wide enough for its number."""
SHOWN_SHARE = 0.005
"""A cell that rounds to 0 % is left blank."""
ROW_HEIGHT, FRAME_HEIGHT = 27, 110
PHASE_COLORS = {
    "starting": "var(--idle)",
    "training": "var(--accent-mid)",
    "lost": "var(--warn)",
    "evaluating": "var(--violet)",
    "recovering": "var(--bad)",
}


def timeline(run: Run) -> Figure | None:
    """Steps over run time with phases below; the dotted red climb is work that had to be done again."""
    if not run.wall_seconds:
        return None
    figure = go.Figure()
    add_recoveries(figure, run)
    curve = _climb(run)
    add_line(
        figure, *_columns(curve), "step", "var(--accent)", hover="step %{y:,.0f}<extra></extra>", fill="var(--accent-soft)", legend=False
    )
    lost = [stretch for incident in run.incidents if (stretch := _lost_stretch(incident))]
    for index, stretch in enumerate(lost):
        add_line(figure, *_columns(stretch), "lost work", "var(--bad)", dash="dot", hover="lost<extra></extra>", legend=index == 0)
    add_marks(figure, [(c.seconds, c.step) for c in thinned(run.checkpoints, MOST_MARKS)], "checkpoint", "diamond", "var(--good)")
    add_marks(figure, [(p.seconds, p.step) for p in thinned(run.evals, MOST_MARKS)], "evaluation", "circle", "var(--violet)")
    faults = [(i.seconds, i.step if i.step is not None else _step_before(run, i.seconds)) for i in run.incidents]
    add_marks(figure, faults, "fault", "x", "var(--bad)", size=11)
    for name, color in PHASE_COLORS.items():
        spans = [(s.start, s.end) for s in run.goodput.spans if s.name == name]
        spans += [(max(0.0, p.seconds - (p.duration_seconds or 0.0)), p.seconds) for p in run.evals if name == "evaluating"]
        figure.add_bar(
            orientation="h",
            y=["phase"] * len(spans),
            base=[start for start, _ in spans],
            x=[end - start for start, end in spans],
            width=1,
            # An outline in its own colour keeps a recovery of one second visible in a run of hours.
            marker={"color": color, "line": {"width": 1.5 if name == "recovering" else 0, "color": color}},
            yaxis="y2",
            showlegend=False,
            customdata=[f"{name}, {duration(end - start)}" for start, end in spans],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_layout(
        barmode="overlay",
        hovermode="closest",
        xaxis={**over_run_time(run), "anchor": "y2"},
        yaxis={"title": {"text": "step"}, "domain": [0.13, 1], "rangemode": "tozero", **STEP_TICKS},
        yaxis2={"domain": [0, 0.06], "showticklabels": False, "fixedrange": True, "showgrid": False},
    )
    return finished(figure, height=360)


def loss(run: Run) -> Figure | None:
    """Training loss, raw and smoothed, and test loss over steps."""
    points = thinned([(p.step, p.loss) for p in run.train if p.loss is not None])
    tests = thinned([(p.step, p.loss) for p in run.evals if p.loss is not None])
    if not points and not tests:
        return None
    figure = go.Figure()
    add_faults(figure, run)
    steps, values = _columns(points)
    add_line(figure, steps, values, "train", "var(--accent-mid)", width=1)
    add_line(figure, steps, smoothed(values), "train, smoothed", "var(--accent)", width=2.4)
    add_line(figure, *_columns(tests), "test", "var(--violet)", mode="lines+markers", width=2.4)
    return over_steps(figure)


def accuracy(run: Run) -> Figure | None:
    """Accuracy on training batches and on the test set over steps."""
    points = thinned([(p.step, p.accuracy) for p in run.train if p.accuracy is not None])
    tests = thinned([(p.step, p.accuracy) for p in run.evals if p.accuracy is not None])
    if not points and not tests:
        return None
    figure = go.Figure()
    add_faults(figure, run)
    steps, values = _columns(points)
    add_line(figure, steps, values, "train", "var(--accent-mid)", width=1)
    add_line(figure, steps, smoothed(values), "train, smoothed", "var(--accent)", width=2.4)
    add_line(figure, *_columns(tests), "test", "var(--violet)", mode="lines+markers", width=2.4)
    return over_steps(figure, yaxis={"tickformat": ".0%", "rangemode": "tozero"})


def throughput(run: Run) -> Figure | None:
    """Samples per second over run time, with the recoveries shaded."""
    points = thinned(sorted((p.seconds, p.samples_per_second) for p in run.train if p.samples_per_second is not None))
    if not points:
        return None
    figure = go.Figure()
    add_recoveries(figure, run)
    add_line(figure, *_columns(points), "samples/s", "var(--accent)", fill="var(--accent-soft)", hover="%{y:,.0f} samples/s<extra></extra>")
    axis = {**over_run_time(run), "title": {"text": "run time"}}
    figure.update_layout(showlegend=False, xaxis=axis, yaxis={"rangemode": "tozero"}, hovermode="closest")
    return finished(figure)


def learning_rate(run: Run) -> Figure | None:
    """The schedule as it was lived."""
    points = thinned([(p.step, p.lr) for p in run.train if p.lr is not None])
    if not points:
        return None
    figure = go.Figure()
    add_faults(figure, run)
    add_line(figure, *_columns(points), "learning rate", "var(--accent)", fill="var(--accent-soft)")
    return over_steps(figure, showlegend=False, yaxis={"rangemode": "tozero"})


def per_class(evaluation: Evaluation) -> Figure | None:
    """Accuracy of each class, the best on top; of very many, the hardest."""
    scored = sorted((score, name) for score, name in zip(evaluation.class_accuracy, evaluation.classes, strict=True) if score is not None)
    if not scored:
        return None
    scores, names = _columns(scored[:MOST_CLASSES])
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        x=scores,
        y=[label(name) for name in names],
        text=[percent(score, 0) for score in scores],
        textposition="outside",
        cliponaxis=False,
        marker={"color": "var(--accent)", "line": {"width": 0}},
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure.update_layout(
        showlegend=False,
        bargap=0.3,
        hovermode="closest",
        xaxis={"tickformat": ".0%", "range": [0, 1]},
        yaxis={"showgrid": False, "type": "category", "tickfont": {"color": "var(--ink)"}},
    )
    return finished(figure, height=FRAME_HEIGHT + ROW_HEIGHT * max(5, len(scores)))


def confusion(evaluation: Evaluation) -> Figure | None:
    """Rows are the truth, columns what the model said; a cell is its share of the row. Of very many classes, the hardest."""
    tested = [i for i, row in enumerate(evaluation.confusion) if sum(row)]
    if not tested:
        return None
    order = sorted(sorted(tested, key=lambda i: evaluation.class_accuracy[i] or 0.0)[:MOST_CLASSES])
    names = [label(evaluation.classes[i]) for i in order]
    counts = [[evaluation.confusion[i][j] for j in order] for i in order]
    shares = [[cell / sum(evaluation.confusion[i]) for cell in row] for i, row in zip(order, counts, strict=True)]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=names,
            y=names,
            customdata=counts,
            colorscale=[[0.0, "var(--cell-low)"], [1.0, "var(--cell-high)"]],
            zmin=0,
            zmax=max(max(row) for row in shares),
            showscale=False,
            xgap=2,
            ygap=2,
            text=[[f"{share * 100:.0f}" if share >= SHOWN_SHARE else "" for share in row] for row in shares],
            texttemplate="%{text}" if len(order) <= CELL_TEXT_CLASSES else None,
            textfont={"size": 11},
            hovertemplate="%{y} taken for %{x}: %{customdata} (%{z:.1%})<extra></extra>",
        )
    )
    figure.update_layout(
        hovermode="closest",
        xaxis={"showgrid": False, "tickangle": -40, "title": {"text": "predicted"}, "type": "category"},
        yaxis={"showgrid": False, "autorange": "reversed", "title": {"text": "truth"}, "type": "category"},
    )
    return finished(figure, height=FRAME_HEIGHT + ROW_HEIGHT * max(5, len(order)))


def _columns(points: Sequence[tuple[X, Y]]) -> tuple[list[X], list[Y]]:
    return [x for x, _ in points], [y for _, y in points]


def _climb(run: Run) -> list[tuple[float, float]]:
    """(run seconds, step) of the work that counted, with the flat stretch of each recovery."""
    points = thinned([(p.seconds, float(p.step)) for p in run.train])
    points += [(p.seconds, float(p.step)) for p in thinned(run.evals, MOST_MARKS)]
    points += [(c.seconds, float(c.step)) for c in run.checkpoints if not run.train]
    points += [
        (i.resumed_seconds, float(i.resumed_step)) for i in run.incidents if i.resumed_seconds is not None and i.resumed_step is not None
    ]
    return sorted(points)


def _step_before(run: Run, seconds: float) -> float:
    return max((p.step for p in run.train if p.seconds <= seconds), default=0)


def _lost_stretch(incident: Incident) -> list[tuple[float, float]]:
    """From where the resumed step was first reached up to the fault, and down again to where training went on."""
    end, step = incident.resumed_seconds, incident.resumed_step
    if end is None or step is None or incident.lost_steps is None or incident.lost_since_seconds is None:
        return []
    return [(incident.lost_since_seconds, step), (incident.began_seconds, step + incident.lost_steps), (end, step)]
