"""The operator beside Kubeflow's training operator, on one real API server with many runs: memory, lag, start, writes.

    python benchmarks/operator_scale.py                                  about 15 minutes on 2 cores
    python benchmarks/operator_scale.py --growth 100 1000 --runs 5000    about 40

Wants a cluster in the current kubeconfig context (`make kind-up`), on this machine: the pods are objects only (operator_crowd.py). The
operator runs as a process of this machine; the peer is the cluster's own training operator, restarted when the objects are there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import operator_crowd as crowd
import psutil
import yaml
from processes import BenchmarkError, end_in_order_when_told
from table import machine, print_table

from ddp_operator.act.api_client import connect
from ddp_operator.observe.api import Api, ApiError

REPOSITORY = Path(__file__).resolve().parents[1]
STEADY_SECONDS = 120.0
QUIET_SECONDS = 60.0
SETTLE_SECONDS = 30.0
CHANGES = 100
CHANGES_PER_SECOND = 2.0
"""A thousand runs of four pods in which each pod is lost about once in half an hour."""
BARS_ARE_FOR = 1000
"""Runs. Larger sizes are there for the growth."""
PATIENCE_SECONDS = 900.0
PEER_REST_SECONDS = 30.0


@dataclass
class Watched:
    """What the API server says about the runs: the benchmark's own watch."""

    phase: dict[str, str] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def take(self, body: dict[str, Any]) -> None:
        """One object as it is now."""
        name, status = body["metadata"]["name"], body.get("status") or {}
        self.phase[name] = status.get("phase", "")
        self.steps[name] = (status.get("progress") or {}).get("step", 0)

    async def until(self, holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> float:
        """Wait; gives the time at which it was seen to hold."""
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(holds)
        return time.monotonic()


async def _watch(api: Api, watched: Watched) -> None:
    while True:
        with contextlib.suppress(ApiError):  # a broken connection is no news; anything else ends the measurement
            listed = await api.request("GET", crowd.RUNS, timeout_seconds=60)
            for item in listed["items"]:
                watched.take(item)
            async with watched.changed:
                watched.changed.notify_all()
            version = listed["metadata"]["resourceVersion"]
            query = {"watch": "1", "resourceVersion": version, "timeoutSeconds": "3000"}
            async for event in api.stream(crowd.RUNS, query=query, read_timeout_seconds=3000):
                if event["type"] in {"ADDED", "MODIFIED"}:
                    watched.take(event["object"])
                    async with watched.changed:
                        watched.changed.notify_all()


class Ours:
    """The operator's process."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        settings = {"NAMESPACES": crowd.NAMESPACE, "PORT": str(self.port), "LEASE_NAMESPACE": crowd.NAMESPACE, "LOG_LEVEL": "WARNING"}
        environment = {**os.environ, **{f"DDP_OPERATOR__{key}": value for key, value in settings.items()}}
        self.started = time.monotonic()
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("ddp-operator")], env=environment, stdout=out, stderr=subprocess.STDOUT
            )
        self._usage = psutil.Process(self.process.pid)

    def end(self) -> None:
        """As a cluster ends it."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        self.process.kill()
        self.process.wait()

    @property
    def rss_mib(self) -> float:
        """Now."""
        return float(self._usage.memory_info().rss) / 2**20

    @property
    def peak_mib(self) -> float:
        """Since its start."""
        return _peak_mib(self.process.pid)

    @property
    def cpu_seconds(self) -> float:
        """User and system."""
        times = self._usage.cpu_times()
        return float(times.user + times.system)

    async def writes(self) -> int:
        """Statuses written since its start."""
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = await answer.text()
        found = re.findall(r"^ddp_operator_status_writes_total ([0-9.e+]+)", text, re.MULTILINE)
        if not found:
            raise BenchmarkError("the operator's /metrics does not say how many statuses it wrote")
        return int(float(found[0]))


def _peer() -> psutil.Process | None:
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or [""]
        if process.info["name"].startswith("training-operat") or Path(words[0]).name in {"training-operator", "training-operator.v1"}:
            return process
        if words[0] == "/manager" and any("init-container" in word or "kube-api" in word for word in words):
            return process
    return None


async def _measure_peer(api: Api) -> tuple[float, float]:
    """RSS and peak of the training operator, restarted, after it has rested; NaN where there is none on this machine."""
    deployment = "/apis/apps/v1/namespaces/kubeflow/deployments/training-operator"
    stamp = {"spec": {"template": {"metadata": {"annotations": {"ddp-operator.io/restarted": str(time.time())}}}}}
    try:
        await api.request("PATCH", deployment, body=stamp, content_type="application/merge-patch+json", timeout_seconds=30)
    except ApiError:
        return float("nan"), float("nan")
    await asyncio.sleep(PEER_REST_SECONDS)
    process = _peer()
    if process is None:
        return float("nan"), float("nan")
    return process.memory_info().rss / 2**20, _peak_mib(process.pid)


def _peak_mib(pid: int) -> float:
    """Since its start."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (peak_kib,) = re.findall(r"VmHWM:\s+(\d+)", status)
    return int(peak_kib) / 1024


async def _changes(api: Api, watched: Watched, runs: int) -> list[float]:
    """Seconds from the answer to a pod's change to the TrainingRun that says so; two for each pod: lost, and back."""
    lags: list[float] = []

    async def one(run: int) -> None:
        name = crowd.name_of(run)
        index = random.randrange(3)
        await crowd.set_status(api, run, "Worker", index, crowd.pod_failed(run, time.time()))
        begun = time.monotonic()
        lags.append(await watched.until(lambda: watched.phase[name] == "Restarting") - begun)
        await crowd.replace_pod(api, run, "Worker", index)
        begun = time.monotonic()
        lags.append(await watched.until(lambda: watched.phase[name] == "Running") - begun)

    tasks = []
    for run in random.sample(range(runs), min(CHANGES, runs)):
        tasks.append(asyncio.create_task(one(run)))
        await asyncio.sleep(1 / CHANGES_PER_SECOND)
    await asyncio.gather(*tasks)
    return lags


@dataclass(frozen=True)
class Seen:
    """One size."""

    runs: int
    start_seconds: float
    rss_mib: float
    peak_mib: float
    cpu_percent: float
    writes_per_run_minute: float
    lags: list[float]
    quiet_writes: int
    peer_mib: float
    peer_peak_mib: float


async def _measure(api: Api, runs: int, log: Path) -> Seen:
    progress, watched = crowd.Progress(), Watched()
    watch = asyncio.create_task(_watch(api, watched))
    async with progress.serving():
        peer_mib, peer_peak_mib = await _measure_peer(api)
        ours = Ours(log)
        try:
            wanted = [crowd.name_of(run) for run in range(runs)]
            told = await watched.until(lambda: all(watched.phase.get(n) == "Running" and watched.steps.get(n) for n in wanted))
            start_seconds = told - ours.started
            await asyncio.sleep(SETTLE_SECONDS)
            writes, cpu = await ours.writes(), ours.cpu_seconds
            await asyncio.sleep(STEADY_SECONDS)
            steady = (await ours.writes() - writes) / runs * 60 / STEADY_SECONDS
            cpu_percent = 100 * (ours.cpu_seconds - cpu) / STEADY_SECONDS
            rss_mib = ours.rss_mib
            lags = await _changes(api, watched, runs)
            progress.halt()
            await asyncio.sleep(SETTLE_SECONDS)
            writes = await ours.writes()
            await asyncio.sleep(QUIET_SECONDS)
            quiet = await ours.writes() - writes
            return Seen(runs, start_seconds, rss_mib, ours.peak_mib, cpu_percent, steady, lags, quiet, peer_mib, peer_peak_mib)
        finally:
            ours.end()
            watch.cancel()


@contextlib.asynccontextmanager
async def _prepared(api: Api) -> AsyncIterator[None]:
    """The CRD, the namespace and the nodes; away with the last two at the end."""
    for path in sorted((REPOSITORY / "helm" / "crds").glob("*.yaml")):
        with contextlib.suppress(ApiError):
            definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            await api.request("POST", definitions, body=yaml.safe_load(path.read_text(encoding="utf-8")), timeout_seconds=30)
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": crowd.NAMESPACE}}
    await crowd.all_at_once([lambda: api.request("POST", "/api/v1/namespaces", body=body, timeout_seconds=30)])
    await crowd.make_nodes(api)
    alive = asyncio.create_task(crowd.keep_alive(api))
    try:
        yield
    finally:
        alive.cancel()
        for path in (f"/api/v1/namespaces/{crowd.NAMESPACE}", *(f"/api/v1/nodes/scale-{n}" for n in range(crowd.NODES))):
            with contextlib.suppress(ApiError):
                await api.request("DELETE", path, timeout_seconds=60)


def _print(seen: list[Seen]) -> None:
    last = max((s for s in seen if s.runs <= BARS_ARE_FOR), key=lambda s: s.runs, default=seen[-1])
    p95 = statistics.quantiles(last.lags, n=20)[18]
    median = statistics.median(last.lags)
    rows = [
        [
            "RSS, steady",
            f"{last.rss_mib:.0f} MiB",
            f"{last.peer_mib:.0f} MiB",
            "< 150 MB, below the peer's",
            _below(last.rss_mib, last.peer_mib),
        ],
        [
            "RSS, peak since its start",
            f"{last.peak_mib:.0f} MiB",
            f"{last.peer_peak_mib:.0f} MiB",
            "< 150 MB, below the peer's",
            _below(last.peak_mib, last.peer_peak_mib),
        ],
        [
            "pod change -> TrainingRun status, p95",
            f"{p95:.2f} s (median {median:.2f}, max {max(last.lags):.2f})",
            "",
            "< 2 s",
            _ok(p95 < 2),
        ],
        ["cold start -> all statuses true", f"{last.start_seconds:.1f} s", "", "< 30 s", _ok(last.start_seconds < 30)],
        [f"writes in {QUIET_SECONDS:.0f} s in which nothing changes", str(last.quiet_writes), "", "0", _ok(last.quiet_writes == 0)],
        ["writes per run and minute, training", f"{last.writes_per_run_minute:.2f}", "", "<= 6", _ok(last.writes_per_run_minute <= 6)],
        ["CPU, training", f"{last.cpu_percent:.0f} % of a core", "", "", ""],
    ]
    print(f"\n{last.runs} runs x {len(crowd.REPLICAS)} pods; n = {len(last.lags)} changes of pods\n")
    print_table(["measure", "ours", "training operator", "bar", "holds"], rows)
    if len(seen) > 1:
        print()
        growth = [
            [
                f"{s.runs:,}",
                f"{s.rss_mib:.0f} MiB",
                f"{s.peer_mib:.0f} MiB",
                f"{s.cpu_percent:.0f} %",
                f"{s.start_seconds:.1f} s",
                f"{statistics.quantiles(s.lags, n=20)[18]:.2f} s",
            ]
            for s in seen
        ]
        print_table(["runs", "RSS", "peer's RSS", "CPU of a core", "cold start", "lag p95"], growth)
        print()
        for small, large in itertools.pairwise(seen):
            runs, memory, cpu = large.runs / small.runs, large.rss_mib / small.rss_mib, large.cpu_percent / small.cpu_percent
            words = f"{runs:.1f} times the runs: {memory:.1f} times the memory, {cpu:.1f} times the CPU"
            print(f"{words}; linear or better: {_ok(max(memory, cpu) <= runs)}")


def _below(mib: float, peer_mib: float) -> str:
    """Below 150 MB, and below the peer's; without a peer there is nothing to be below of."""
    return _ok(mib < 143 and mib < peer_mib) if peer_mib == peer_mib else "NO PEER"  # noqa: PLR0124  NaN: it was not measured


def _ok(holds: bool) -> str:
    return "yes" if holds else "NO"


async def _main(sizes: list[int]) -> None:
    api = await connect()
    log = Path(tempfile.gettempdir()) / "operator-scale.log"
    seen: list[Seen] = []
    try:
        async with _prepared(api):
            there = 0
            for size in sizes:
                print(f"making {size - there:,} more runs ...", file=sys.stderr, flush=True)
                await crowd.create(api, range(there, size))
                there = size
                seen.append(await _measure(api, size, log))
                print(f"{size:,}: {seen[-1]}", file=sys.stderr, flush=True)
            _print(seen)
    finally:
        await api.close()


def main() -> None:
    """Measure and print."""
    end_in_order_when_told()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--growth", type=int, nargs="*", default=[100], help="smaller sizes that are measured before")
    arguments = parser.parse_args()
    print(machine())
    asyncio.run(_main([*(size for size in sorted(arguments.growth) if size < arguments.runs), arguments.runs]))


if __name__ == "__main__":
    main()
