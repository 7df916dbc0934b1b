"""Run cases, print their rows as they come, and let nothing that a case raises keep the others from running."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from cases import CASES, PARTS, Case
from drill import Drill
from table import HEAD, LeftOutError, Row, closing


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Disturb real runs; print one table.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of: {', '.join(CASES)}; all by default")
    parser.add_argument("--keep", action="store_true", help="leave the run directories of rows that are not as expected, to look at")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.cases if name not in CASES]:
        parser.error(f"there is no case {unknown[0]}; there are {', '.join(CASES)}")
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    rows: list[Row] = []
    started = time.monotonic()
    print(HEAD, flush=True)
    drill = Drill(Path(tempfile.mkdtemp(prefix="ddp-chaos-")))
    try:
        for name in arguments.cases or (name for name in CASES if name not in PARTS):
            rows += _one(name, CASES[name], drill, keep=arguments.keep)
    finally:
        drill.close()
        if not arguments.keep:
            shutil.rmtree(drill.folder, ignore_errors=True)
    print(f"\n{closing(rows, (time.monotonic() - started) / 60)}")
    return int(not all(row.good for row in rows))


def _one(name: str, case: Case, drill: Drill, *, keep: bool) -> list[Row]:
    """Whatever a case raises becomes a row: the others, and the table, must come."""
    rows: list[Row] = []
    try:
        for row in case(drill):
            print(row.line, flush=True)
            rows.append(row)
    except LeftOutError as error:
        rows.append(Row(name, "to run", str(error), ran=False))
        print(rows[-1].line, flush=True)
    except Exception as error:  # a case's edge
        traceback.print_exc()
        rows.append(Row(name, "to come so far", f"{type(error).__name__}: {str(error)[:600]}", good=False))
        print(rows[-1].line, flush=True)
    finally:
        if keep and not all(row.good for row in rows):
            print(f"{name}: kept in {drill.folder}", file=sys.stderr)
        drill.clear(keep=keep and not all(row.good for row in rows))
    return rows
