"""`python tests/e2e/run.py [--short | case ...]`: run cases on the cluster of kind-up.sh, print one table; exit code 1 if one is bad."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from cases import CASES, Row
from cluster import CaseError, Release


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="End-to-end cases on a real cluster.")
    parser.add_argument("cases", nargs="*", help=f"any of: {', '.join(CASES)}; all by default")
    parser.add_argument("--short", action="store_true", help="one install, one pod killed, one uninstall")
    parser.add_argument("--keep", action="store_true", help="leave the namespace of a case that failed, to look at")
    arguments = parser.parse_args()
    chosen = ["short"] if arguments.short else arguments.cases or [name for name in CASES if name != "short"]
    rows: list[Row] = []
    for name in chosen:
        rows += _one(name, keep=arguments.keep)
    say("\n" + table(rows))
    bad = sum(not row.good or (row.slow and not arguments.short) for row in rows)
    say(f"{len(rows)} lines, {bad} not as expected")
    return int(bad > 0)


def _one(name: str, *, keep: bool) -> list[Row]:
    say(f"=== {name}: {(CASES[name].__doc__ or '').strip()}")
    release = Release(namespace=f"e2e-{name}")
    release.delete()
    release.create_namespace(**({"pod_security": "restricted"} if name == "restricted" else {}))
    rows: list[Row] = []
    started = time.time()
    try:
        for row in CASES[name](release):
            rows.append(row)
            say(_line(row))
    except (CaseError, subprocess.TimeoutExpired) as error:
        rows.append(Row(name, "to come so far", str(error), time.time() - started, good=False))
        say(_line(rows[-1]))
        say(release.kubectl("get", "pytorchjobs,pods,pvc", "-o", "wide", check=False))
        say(release.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-2500:])
        if keep:
            release.stop_following()
            return rows
    release.delete()
    return rows


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = ["| case | expected | seen | seconds | |", "|---|---|---|---|---|"]
    return "\n".join(lines + [_line(row) for row in rows])


def _line(row: Row) -> str:
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    return f"| {row.case} | {row.expected} | {row.seen} | {seconds} | {'BAD' if not row.good else 'slow' if row.slow else 'ok'} |"


def say(text: str) -> None:
    """To the reader, at once: cases take minutes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
