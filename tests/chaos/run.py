"""`python tests/chaos/run.py [CASE ...]`: disturb real runs in every way that we know of, and print one table as it goes.

Most cases take seconds; all of them at most half an hour on 2 cores. Exit code 0: every row is as expected; 1: not.
Some need root (mounts, network namespaces): where they cannot run, the row says so and does not count.
"""

from __future__ import annotations

import sys

import faulty_system

if __name__ == "__main__":
    faulty_system.watch_clock()  # before the program is imported
    from suite import main

    sys.exit(main())
