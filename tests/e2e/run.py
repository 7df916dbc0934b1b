"""`python tests/e2e/run.py [--short | case ...]`: run cases on the cluster of kind-up.sh, and print two tables.

The first has a line for each claim: case, expected, seen, seconds. The second has the exit code of every pod for every fault. Both are
printed whatever happens. Exit code 0: all as expected; 1: not; 2: no case could run, and one sentence says why.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

import preflight
from cases import CASES, RESTRICTED
from cluster import CaseError, NotRunError
from release import Release
from table import FaultLine, Row, exit_table, fault_lines, judged, table

NOT_CHECKED, INTERRUPTED = 2, 130


@dataclass
class Results:
    """What the cases gave so far."""

    rows: list[Row] = field(default_factory=list)
    faults: list[FaultLine] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep a line, and show it."""
        self.rows.append(row)
        say(row.line)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="End-to-end cases on a real cluster.")
    parser.add_argument("cases", nargs="*", help=f"any of: {', '.join(CASES)}; all but the short one by default")
    parser.add_argument("--short", action="store_true", help="one install, one pod killed, one uninstall")
    parser.add_argument("--keep", action="store_true", help="leave the namespace of a case that failed, to look at")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.cases if name not in CASES]:
        parser.error(f"there is no case {unknown[0]}; there are {', '.join(CASES)}")
    is_full = not arguments.short and not arguments.cases
    chosen = ["short"] if arguments.short else arguments.cases or [name for name in CASES if name != "short"]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        say(preflight.check())
    except preflight.PreflightError as error:
        sys.stderr.write(f"e2e: {error}\n")
        return NOT_CHECKED
    results, started = Results(), time.time()
    code = 0
    try:
        for name in chosen:
            _one(name, results, keep=arguments.keep)
    except KeyboardInterrupt:
        say("interrupted")
        code = INTERRUPTED
    say("\n" + table(results.rows))
    if results.faults:
        say("\n" + exit_table(results.faults))
    bad = sum(not row.good or (row.slow and not arguments.short) or (not row.ran and is_full) for row in results.rows)
    say(f"\n{len(results.rows)} lines in {time.time() - started:.0f} s, {bad} not as expected")
    return code or int(bad > 0)


def _one(name: str, results: Results, *, keep: bool) -> None:
    """One case in a namespace of its own. Whatever it raises becomes a line; only an interrupt ends the others."""
    case, started = CASES[name], time.time()
    say(f"=== {name}: {(case.__doc__ or '').strip()}")
    release = Release(namespace=f"e2e-{name.replace('_', '-')}")
    leave = False
    try:
        release.delete()
        release.create_namespace(restricted=name in RESTRICTED)
        for row in case(release):
            results.add(row)
    except NotRunError as error:
        results.add(Row(name, "to run", str(error), ran=False))
    except Exception as error:  # a case's edge: the others, and the table, must come
        leave = keep
        if not isinstance(error, CaseError):
            say(traceback.format_exc())
        results.add(Row(name, "to come so far", f"{type(error).__name__}: {error}", time.time() - started, good=False))
        _look_around(release)
    except KeyboardInterrupt:  # whoever interrupts does not wait for pods to go; the next run of the case clears up first
        leave = True
        raise
    finally:
        results.faults += fault_lines(name, release)
        if (verdict := judged(release)) is not None:
            results.add(verdict)
        _clean_up(name, release, results, leave=leave)


def _look_around(release: Release) -> None:
    """What a reader of the log would ask next."""
    say(f"watches: {release.trouble() or 'no trouble'}")
    for question in (
        ("get", "pytorchjobs,pods,pvc", "-o", "wide"),
        ("get", "events", "--sort-by=.lastTimestamp"),
        ("logs", "-l", "app.kubernetes.io/name=ddp-trainer", "--all-containers", "--prefix", "--tail=12"),
    ):
        try:
            say(release.kubectl(*question, check=False, timeout=60)[-3000:])
        except CaseError as error:
            say(str(error))


def _clean_up(name: str, release: Release, results: Results, *, leave: bool) -> None:
    try:
        if leave:
            release.stop_following()
            say(f"namespace {release.namespace} stays")
        else:
            release.delete()
    except Exception as error:  # the same edge
        if not isinstance(error, CaseError):
            say(traceback.format_exc())
        results.add(Row(f"{name}, cleaning up", "nothing left", f"{type(error).__name__}: {error}", good=False))


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def say(text: str) -> None:
    """To the reader, at once: cases take minutes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
