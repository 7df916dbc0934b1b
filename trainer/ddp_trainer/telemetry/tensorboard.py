"""Scalars in TensorBoard's file format, written without TensorBoard.

Importing its writer costs 0.5 s of a free core and 4 s of a busy one (torch's wrapper several times that), in rank 0, after every restart.
A scalar needs five fields of one message and a checksum, and both formats are frozen: so they are written here, in microseconds and
with no package installed, and the tests read them with TensorBoard's own reader.

After a resume `purge(step)` makes the new file begin with a session mark: TensorBoard then hides what earlier files say about that step
and later ones, so that curves do not overlap. Nothing here fails a run: a disk that says no is warned of once, and the file ends there.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types of protocol buffers
_SESSION_START = 1


class TensorBoard:
    """Writes one file below `folder`; nothing is created before the first value."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._purge_step: int | None = None
        self._is_over = False

    def purge(self, step: int) -> None:
        """Called before the first value of a resumed run: what was written about `step` and later ones is void."""
        self._purge_step = step

    def scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        """Append some values. May block as long as the file system does; never raises for what the file system does."""
        if self._is_over:
            return
        try:
            if self._descriptor is None:
                self._open(wall_time)
            summary = b"".join(_message(1, _message(1, tag.encode()) + _float(2, value)) for tag, value in values.items())
            self._write(_double(1, wall_time) + _integer(2, step) + _message(5, summary))
        except OSError as error:
            self._is_over = True
            logger.warning("TensorBoard files end here: cannot write to %s: %s; the run goes on", self._folder, error.strerror)

    def close(self) -> None:
        """Close the file; nothing is written after this."""
        self._is_over = True
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self, wall_time: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, and needs "tfevents" in them
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._write(_double(1, wall_time) + _message(3, b"brain.Event:2"))
        if self._purge_step is not None:
            self._write(_double(1, wall_time) + _integer(2, self._purge_step) + _message(7, _integer(1, _SESSION_START)))

    def _write(self, event: bytes) -> None:
        assert self._descriptor is not None
        length = struct.pack("<Q", len(event))
        record = length + _checksum(length) + event + _checksum(event)
        if os.write(self._descriptor, record) != len(record):
            raise OSError(errno.ENOSPC, "only part of a record could be written")


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 (seven bits a byte)
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _integer(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _key(field, _DOUBLE) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _key(field, _FLOAT) + struct.pack("<f", min(max(value, -_LARGEST_FLOAT), _LARGEST_FLOAT))


def _message(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


_LARGEST_FLOAT = 3.4028234e38
_CASTAGNOLI = 0x82F63B78  # CRC-32C, bits reflected


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_TABLE = tuple(_entry(byte) for byte in range(256))


def _checksum(data: bytes) -> bytes:
    """TFRecord's masked CRC-32C, so that a checksum of data that holds checksums stays useful."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
