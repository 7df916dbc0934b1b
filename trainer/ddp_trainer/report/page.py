"""`write_report`: a run directory in, one HTML file out that tells the run to people.

The file is whole in itself: it opens from file:// without a network, and its content security policy forbids it to ask for anything
or to run any script but its own two, so text that a run wrote stays text. Charts are plotly's, interactive, from plotly.js embedded
once: gzip and base64 bring its 4.8 MB to 2 MB, which the browser unpacks itself (DecompressionStream, in every browser since 2023).
Uncompressed, the page would pass its 5 MB bound; static SVG would need a headless browser wherever a report is written. Where charts
cannot run, numbers and tables still say everything that counts. What may grow with a run (points, events, pictures) is bounded, and the
page says where it was cut.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ddp_trainer.errors import ConfigError, DataError
from ddp_trainer.report import numbers
from ddp_trainer.report.inputs import read_inputs
from ddp_trainer.report.story import Run, tell
from ddp_trainer.report.words import cards, cause_words, config_sections, sentence, shares

if TYPE_CHECKING:
    from ddp_trainer.report.drawing import Figure
    from ddp_trainer.report.model import Sample

REPORT_FILE = "report.html"
MOST_EVENTS = 400
"""Events listed: the first and the last half of this many."""
MOST_CHECKPOINTS = 60
MOST_INCIDENTS = 100
PICTURES_BYTES = 1_500_000
"""Room for sample pictures: with plotly.js (2 MB) and the curves (under 1 MB) the page stays below 5 MB."""
MESSAGE_CHARACTERS = 2000
"""Of one message, or of the stacks of one rank."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_dir: Path, destination: Path | None = None) -> Path:
    """Write the report of `run_dir` to `destination` (default `run_dir/report.html`) and return its path.

    A run that failed early gives a page that says what is missing. Takes a second or two.

    Raises:
        ConfigError: plotly is not installed.
        DataError: `run_dir` holds nothing of a run, or the page cannot be written.
    """
    run_dir = Path(run_dir)
    target = Path(destination) if destination else run_dir / REPORT_FILE
    html = render(run_dir)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")  # a message may hold half a character
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):  # a volume that is read-only refuses even to remove nothing
            temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write the report {target}: {error.strerror}; give another file that can be written") from error
    return target


def render(run_dir: Path) -> str:
    """The page as text; raises as `write_report` does, except for writing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigError(
            "the report draws its charts with plotly, which is not installed here; run: pip install 'ddp-operator[report]'"
        ) from None
    inputs = read_inputs(run_dir)
    run = tell(inputs)
    library, script = get_plotlyjs(), (TEMPLATES / "report.js").read_text(encoding="utf-8")
    pictures = _pictures(run.evaluation.samples if run.evaluation else ())
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": numbers.duration, "percent": numbers.percent, "count": numbers.count, "size": numbers.size}
    environment.filters |= {"moment": numbers.moment, "clipped": lambda text: text[:MESSAGE_CHARACTERS], "words": cause_words}
    return environment.get_template("report.html").render(
        run=run,
        inputs=inputs,
        sentence=sentence(run, inputs.config),
        cards=cards(run),
        shares=shares(run.goodput),
        figures=_figures(run),
        sections=config_sections(inputs.config),
        pictures=pictures,
        events=_cut(run.events, MOST_EVENTS),
        saved=_cut(run.checkpoints, MOST_CHECKPOINTS),
        incidents=_cut(run.incidents, MOST_INCIDENTS),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        plotly=_packed(library),
        script_hashes=" ".join(_script_hash(text) for text in (script, library)),
    )


def _figures(run: Run) -> dict[str, Figure | None]:
    """All charts by the name of their place in the page; None where there is nothing to draw."""
    from ddp_trainer.report import charts

    evaluation = run.evaluation
    return {
        "timeline": charts.timeline(run),
        "loss": charts.loss(run),
        "accuracy": charts.accuracy(run),
        "throughput": charts.throughput(run),
        "learning_rate": charts.learning_rate(run),
        "per_class": charts.per_class(evaluation) if evaluation else None,
        "confusion": charts.confusion(evaluation) if evaluation else None,
    }


def _cut(items: Sequence[Any], most: int) -> tuple[Sequence[Any], int]:
    """The first and the last items, at most `most`, and how many were left out between them."""
    if len(items) <= most:
        return items, 0
    half = most // 2
    return [*items[:half], *items[-half:]], len(items) - 2 * half


def _pictures(samples: tuple[Sample, ...]) -> list[tuple[Sample, str]]:
    """Samples whose picture is a PNG, with it as base64, while there is room; wrong ones first."""
    found, room = [], PICTURES_BYTES
    for sample in samples:
        try:
            data = base64.b64decode(sample.png, validate=True)
        except ValueError:
            continue
        if data.startswith(PNG_MAGIC) and len(data) * 4 / 3 <= room:
            room -= len(data) * 4 // 3
            found.append((sample, base64.b64encode(data).decode("ascii")))
    return sorted(found, key=lambda pair: pair[0].is_right)


@cache
def _packed(library: str) -> str:
    return base64.b64encode(gzip.compress(library.encode(), mtime=0)).decode("ascii")


@cache
def _script_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
