"""The README's pictures from a real run: docs/images/report.png by a headless browser, terminal.svg and terminal.png from a recording.

    script -qc "make demo" demo.typescript
    python benchmarks/screenshots.py runs/demo --terminal demo.typescript --until resumed
    kubectl port-forward svc/ddp-demo-operator 8080 & python benchmarks/screenshots.py --dashboard http://localhost:8080

The last makes docs/images/dashboard.png, of the first run that the operator's dashboard shows. A recording holds every frame of the live
display; `--until TEXT` stops it at the frame in which TEXT first appears. The terminal that replays it knows what rich and tqdm send
(carriage return, cursor up, erase line, colours), not full-screen programs. Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from ddp_trainer.report.page import write_report

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_SECONDS = 120
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=20000")  # fmt: skip
TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]|(\r)|(\n)|([^\x1b\r\n]+|\x1b)")
FONT_FACE = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)
"""rich's picture loads its font from the network; ours takes the reader's monospace."""


def shoot(address: str, target: Path, width: int, height: int, *, dark: bool = False) -> None:
    """A picture of what a browser shows at `address`."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is on PATH; install Chromium to make the pictures")
    scheme = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0") if dark else ("--blink-settings=preferredColorScheme=1",)
    with tempfile.TemporaryDirectory() as profile:
        sizes = (f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={target}")
        subprocess.run([browser, *QUIET, *scheme, *sizes, address], check=True, capture_output=True, timeout=BROWSER_SECONDS)
    print(target)


def frame(recording: str, until: str | None) -> str:
    """The recording without `script`'s own lines, up to the end of the frame in which `until` first appears."""
    body = re.sub(r"\AScript started on [^\n]*\n|\n?Script done on [^\n]*\n?\Z", "", recording)
    if until is None:
        return body
    place = body.find(until)
    if place < 0:
        sys.exit(f"{until!r} does not appear in the recording; choose a text that it shows on one line without a change of colour")
    redraw = re.compile(r"(?:\r|\x1b\[2K)*\x1b\[\d*A").search(body, place)  # how rich and tqdm begin the next frame
    return body[: redraw.start()] if redraw else body


def replay(stream: str) -> list[str]:
    """The lines on the terminal at the end of `stream`, colours as escape sequences."""
    lines, row, overwrite = [""], 0, False
    for token in TOKEN.finditer(stream):
        argument, command, carriage, newline, text = token.groups()
        if carriage:
            overwrite = True
        elif newline:
            row, overwrite = row + 1, True
        elif command == "A":
            row = max(0, row - int(argument or 1))
        elif command == "K":
            lines[row] = "" if argument == "2" or overwrite else lines[row]
        elif text or command == "m":
            lines[row] = ("" if overwrite else lines[row]) + token.group()
            overwrite = False
        lines += [""] * (row + 1 - len(lines))
    return lines


def draw_terminal(lines: list[str], title: str, target: Path) -> tuple[int, int]:
    """Write the lines as a terminal window in SVG; returns its width and height in pixels."""
    texts = [Text.from_ansi(line) for line in lines]
    width = max([60, *(text.cell_len for text in texts)])
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False)
    for text in texts:
        console.print(text, soft_wrap=True)
    svg = console.export_svg(title=title, code_format=FONT_FACE.sub("", CONSOLE_SVG_FORMAT))
    target.write_text(svg, encoding="utf-8")
    print(target)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    return round(float(box[1])), round(float(box[2]))


def first_run(dashboard: str) -> str:
    """The address of the first run on the operator's dashboard."""
    with urllib.request.urlopen(dashboard, timeout=10) as answer:  # noqa: S310  # the address is the caller's own
        found = re.search(r'href="(/runs/[^"?]+)"', answer.read().decode())
    return urllib.parse.urljoin(dashboard, found[1]) if found else sys.exit(f"{dashboard} shows no run; is it the operator's dashboard?")


def main() -> None:
    """Make the pictures that the arguments ask for."""
    parser = argparse.ArgumentParser(description="Make the pictures in docs/images from a real run.")
    parser.add_argument("run_dir", type=Path, nargs="?", help="a finished run, such as runs/demo")
    parser.add_argument("--dashboard", metavar="URL", help="of the operator: makes dashboard.png, of its first run")
    parser.add_argument("--terminal", type=Path, help="a recording of it: script -qc 'make demo' FILE")
    parser.add_argument("--until", help="show the frame in which this text first appears; default: the end")
    parser.add_argument("--lines", type=int, default=34, help="at most this many last lines of the terminal")
    parser.add_argument("--title", default="make demo", help="of the terminal window")
    parser.add_argument("--height", type=int, default=1580, help="pixels of the report shown, from its top")
    parser.add_argument("--dark", action="store_true", help="the report in its dark colours")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where the pictures go")
    options = parser.parse_args()
    options.images.mkdir(parents=True, exist_ok=True)
    if options.dashboard:
        shoot(first_run(options.dashboard), options.images / "dashboard.png", 1280, 1000, dark=options.dark)
    if options.run_dir:
        shoot(write_report(options.run_dir).resolve().as_uri(), options.images / "report.png", 1280, options.height, dark=options.dark)
    if options.terminal:
        # newline="": a carriage return is a command here, not half of a line break
        with options.terminal.open(encoding="utf-8", errors="replace", newline="") as file:
            lines = replay(frame(file.read(), options.until))
        while lines and not Text.from_ansi(lines[-1]).plain.strip():
            lines.pop()
        picture = options.images / "terminal.svg"
        width, height = draw_terminal(lines[-options.lines :], options.title, picture)
        shoot(picture.resolve().as_uri(), picture.with_suffix(".png"), width, height)


if __name__ == "__main__":
    main()
