"""Readings of this machine, and of GPUs by a stand-in for the driver where there is none."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from ddp_trainer.telemetry import hardware
from ddp_trainer.telemetry.hardware import GpuReading, Gpus, Processes, Sampler, bare_uuid, read_storage


class NVMLError(Exception):
    pass


def driver(**changes):
    def unsupported(*_):
        raise NVMLError("Not Supported")

    answers = {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda _: "GPU-AB12",
        "nvmlDeviceGetName": lambda _: "NVIDIA H100",
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=87),
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=10, total=80),
        "nvmlDeviceGetTemperature": lambda *_: 41,
    }
    return SimpleNamespace(**{**answers, **{name: unsupported for name, value in changes.items() if value is None}})


def test_a_gpu_is_read_in_ratios_bytes_and_degrees(monkeypatch):
    monkeypatch.setattr(hardware, "_load_nvml", driver)
    assert Gpus().read() == (GpuReading(0, "ab12", "NVIDIA H100", 0.87, 10, 80, 41),)


def test_what_a_driver_does_not_tell_is_unknown_and_the_rest_is_kept(monkeypatch):
    silent = driver(nvmlDeviceGetUtilizationRates=None, nvmlDeviceGetTemperature=None)
    monkeypatch.setattr(hardware, "_load_nvml", lambda: silent)
    assert Gpus().read() == (GpuReading(0, "ab12", "NVIDIA H100", None, 10, 80, None),)


def test_a_driver_that_fails_as_a_whole_lists_no_gpus(monkeypatch):
    broken = driver(nvmlDeviceGetCount=None)
    monkeypatch.setattr(hardware, "_load_nvml", lambda: broken)
    assert Gpus().read() == ()


def test_without_a_driver_nvml_is_tried_once_only(monkeypatch):
    tries = []
    monkeypatch.setattr(hardware, "_load_nvml", lambda: tries.append(1))
    gpus = Gpus()
    assert gpus.read() == gpus.read() == ()
    assert tries == [1]


@pytest.mark.parametrize("text", ["GPU-AB12", "ab12", "GPU-ab12"])
def test_nvml_and_torch_name_a_device_alike(text):
    assert bare_uuid(text) == "ab12"


def test_processes_are_read_by_pid_and_cpu_is_known_from_the_second_reading():
    processes = Processes()
    first = processes.read([os.getpid()])[os.getpid()]
    second = processes.read([os.getpid()])[os.getpid()]
    assert first.cpu_percent is None
    assert second.cpu_percent is not None
    assert second.cpu_percent >= 0
    assert second.rss_bytes > 10 * 2**20


def test_a_process_that_is_gone_or_a_pid_that_cannot_be_is_left_out():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert Processes().read([child.pid, -1, 2**40]) == {}


def test_storage_is_that_of_the_volume(tmp_path):
    volume = read_storage(tmp_path)
    assert volume is not None
    assert 0 < volume.free_bytes <= volume.total_bytes
    assert read_storage(tmp_path / "none") is None


def test_a_sampler_keeps_the_last_good_result_when_a_reading_fails(caplog):
    turns = []

    def work():
        turns.append(len(turns))
        if len(turns) > 1:
            raise OSError("gone")
        return "good"

    sampler = Sampler("test", work, "none")
    sampler.start()
    assert sampler.stop(10.0, work_once_more=True)
    assert sampler.latest == "good"
    assert turns == [0, 1]
    assert "a reading failed" in caplog.text


def test_stopping_does_not_wait_for_a_reading_that_hangs():
    hang, begun = threading.Event(), threading.Event()

    def work():
        begun.set()
        hang.wait()

    sampler = Sampler("test", work, None)
    sampler.start()
    begun.wait()
    assert not sampler.stop(0.01)
    hang.set()
    assert sampler.stop(10.0)
