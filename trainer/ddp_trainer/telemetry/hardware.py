"""What the machine says about a node: GPUs by NVML, processes by psutil, and the room on the run directory's volume.

Readings can block (a GPU that fell off the bus, a dead network file system), so a `Sampler` takes them in a thread of its own, and
whoever wants to know gets the newest one that came back. Nothing here fails a run: no driver, no GPUs listed; a process gone, no row.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 1.0
"""NVML itself averages utilisation over up to 1 s; more often would only cost."""

T = TypeVar("T")


@dataclass(frozen=True)
class GpuReading:
    """One device as NVML numbers it; None where the driver does not say."""

    index: int
    uuid: str
    name: str
    utilization_ratio: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_celsius: float | None


@dataclass(frozen=True)
class ProcessReading:
    """CPU in percent of one core (so 2 busy threads are 200; None at the first reading), and resident memory."""

    cpu_percent: float | None
    rss_bytes: int


@dataclass(frozen=True)
class StorageReading:
    """The volume that holds a directory."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Readings:
    """Everything at one moment."""

    gpus: tuple[GpuReading, ...] = ()
    processes: Mapping[int, ProcessReading] = field(default_factory=dict)
    storage: StorageReading | None = None


def read_storage(directory: Path) -> StorageReading | None:
    """Size of the volume and what an ordinary user may still write there. May block with the file system."""
    try:
        volume = os.statvfs(directory)
    except OSError:
        return None
    return StorageReading(volume.f_blocks * volume.f_frsize, volume.f_bavail * volume.f_frsize)


class Gpus:
    """Reads all devices that the driver shows; loads NVML at the first reading, and never again where that fails."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._tried = False

    def read(self) -> tuple[GpuReading, ...]:
        """One reading per device; empty without NVIDIA driver or library."""
        if not self._tried:
            self._tried = True
            self._nvml = _load_nvml()
        if self._nvml is None:
            return ()
        nvml = self._nvml
        try:
            return tuple(self._one(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            logger.debug("NVML: %s", error)
            return ()

    @staticmethod
    def _one(nvml: Any, index: int) -> GpuReading:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)

        def ask(question: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return question(handle, *arguments)
            except nvml.NVMLError:  # MIG slices and some boards do not tell everything
                return None

        use, memory = ask(nvml.nvmlDeviceGetUtilizationRates), ask(nvml.nvmlDeviceGetMemoryInfo)
        return GpuReading(
            index=index,
            uuid=bare_uuid(ask(nvml.nvmlDeviceGetUUID) or ""),
            name=ask(nvml.nvmlDeviceGetName) or "GPU",
            utilization_ratio=None if use is None else use.gpu / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            temperature_celsius=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        )


def bare_uuid(uuid: str) -> str:
    """A device's UUID as torch writes it: NVML puts "GPU-" before it."""
    return str(uuid).removeprefix("GPU-").lower()


def _load_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


class Processes:
    """Reads CPU and memory of processes by pid; remembers them, since CPU use is a difference of two readings."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}

    def read(self, pids: Iterable[int]) -> dict[int, ProcessReading]:
        """One reading for each pid that is alive and may be looked at."""
        import psutil

        found: dict[int, ProcessReading] = {}
        known, self._known = self._known, {}
        for pid in pids:
            with contextlib.suppress(psutil.Error, ValueError, OverflowError):
                process = known.get(pid)
                is_new = process is None or not process.is_running()  # the pid may belong to another process by now
                process = psutil.Process(pid) if process is None or is_new else process
                with process.oneshot():
                    cpu = process.cpu_percent(None)
                    found[pid] = ProcessReading(None if is_new else cpu, process.memory_info().rss)
                self._known[pid] = process
        return found


class Sampler(Generic[T]):
    """Calls `work` every `SAMPLE_SECONDS` in a daemon thread, and keeps what it returned last."""

    def __init__(self, name: str, work: Callable[[], T], first: T) -> None:
        self.latest = first
        """The newest result; `first` until there is one."""
        self._work = work
        self._stop = threading.Event()
        self._work_once_more = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin with a reading at once."""
        self._thread.start()

    def stop(self, wait_seconds: float, *, work_once_more: bool = False) -> bool:
        """End the thread, after one last turn if asked; False if it has not ended within `wait_seconds` (it dies with the process)."""
        self._work_once_more = work_once_more
        self._stop.set()
        self._thread.join(wait_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._turn()
            self._stop.wait(SAMPLE_SECONDS)
        if self._work_once_more:
            self._turn()

    def _turn(self) -> None:
        try:
            self.latest = self._work()
        except Exception:  # a thread's edge: one failed reading must not end the watching, nor stay silent about a bug
            logger.warning("%s: a reading failed", self._thread.name, exc_info=True)
