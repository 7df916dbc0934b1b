"""How many CPU cores this process may use, which in a container is not how many the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path


def cores() -> int:
    """CPU cores this process may use: affinity, and the cgroup's quota in a container (v2, then v1), rounded up."""
    allowed = len(os.sched_getaffinity(0))
    for quota in _quotas():
        allowed = min(allowed, max(1, math.ceil(quota)))
    return allowed


def _quotas() -> list[float]:
    root = Path("/sys/fs/cgroup")
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return [quota_us / int((root / "cpu/cpu.cfs_period_us").read_text())] if quota_us > 0 else []
    except (OSError, ValueError):
        return []
