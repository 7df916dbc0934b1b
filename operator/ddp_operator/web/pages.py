"""Page models -> HTML. Everything is escaped; the only markup comes from the templates beside this file."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ddp_operator.web.board import SPARK, RunsPage
from ddp_operator.web.drawing import LINE_UNITS
from ddp_operator.web.run_board import CHART, RunPage

TEMPLATES = Path(__file__).parent / "templates"
REFRESH_SECONDS = 5


class Pages:
    """The templates, read and compiled once."""

    def __init__(self) -> None:
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        # our own files, so they may stand unescaped in <style> and <script>
        files = {name: Markup((TEMPLATES / f"board.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}  # noqa: S704
        environment.globals.update(refresh_seconds=REFRESH_SECONDS, spark=SPARK, chart=CHART, line_units=LINE_UNITS, **files)
        self._runs, self._run, self._error = (environment.get_template(f"{name}.html") for name in ("runs", "run", "error"))

    def overview(self, page: RunsPage, nonce: str) -> str:
        """All runs."""
        return self._runs.render(page=page, nonce=nonce)

    def run(self, page: RunPage, nonce: str) -> str:
        """One run."""
        return self._run.render(page=page, nonce=nonce)

    def error(self, status: int, sentence: str, nonce: str) -> str:
        """A sentence in place of a page."""
        return self._error.render(status=status, sentence=sentence, nonce=nonce)
