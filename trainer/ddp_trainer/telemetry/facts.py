"""Facts about each rank, in memory that outlives the rank: one page per node, one slot per local rank.

A rank writes a small JSON document into its slot; the node's agent reads all slots. Nobody ever waits: each slot has two cells, the
writer fills the older one and then numbers it, and a reader takes the newest cell whose checksum holds. So a rank that is killed in the
middle of a write costs at most that one write; what it said before stays readable, which is how the last step of a dead rank is known.

What it does not do: queue (only the newest facts count), carry tensors, or cross machines. One writer per slot at a time; a rank that is
replaced goes on in its predecessor's slot.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ddp_trainer.errors import DataError

CELL_BYTES = 8192
"""Room for one document with its header; a rank's facts take about 1 KiB, so this is 8 times what is needed."""
READ_TRIES = 4
"""A read meets a write in progress in both cells only if the writer laps it; a few tries are always enough for a live writer."""

_MAGIC = b"DDPFACT1"
_FILE = struct.Struct("=8sII")  # magic, slots, cell bytes
_CELL = struct.Struct("@QII")  # sequence (0: empty or being written), payload bytes, checksum of both
_SEQUENCE = struct.Struct("@Q")  # native, so that the number is stored by one instruction
_FILE_HEADER_BYTES = 64
_PAYLOAD_BYTES = CELL_BYTES - _CELL.size
_ESSENTIAL = frozenset({"rank", "pid", "phase", "step", "total_steps", "attempt", "updated_at"})

_encode = json.JSONEncoder(separators=(",", ":"), default=str, check_circular=False).encode


class FactsPage:
    """A memory-mapped file with `slots` slots; make one with `create` (the agent) or `open` (a rank)."""

    def __init__(self, path: Path, memory: mmap.mmap, slots: int) -> None:
        self.path = path
        self.slots = slots
        self._memory = memory
        self._sequence = [0] * slots

    @classmethod
    def create(cls, path: Path, slots: int) -> Self:
        """Make (or replace) the file, empty; it appears under its name only when complete.

        Raises:
            DataError: if the file cannot be made, naming the path and the reason.
        """
        path = Path(path)
        size = _FILE_HEADER_BYTES + slots * 2 * CELL_BYTES
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                # A sparse file on a full /dev/shm would kill the first writer with SIGBUS: take the room now, with an error to catch.
                os.posix_fallocate(descriptor, 0, size)
                os.pwrite(descriptor, _FILE.pack(_MAGIC, slots, CELL_BYTES), 0)
                memory = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise DataError(
                f"cannot make the facts page {path} ({size} bytes): {error.strerror}; give the process that much room in {path.parent} "
                f"(in a container: a larger /dev/shm)"
            ) from error
        return cls(path, memory, slots)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a page that `create` made.

        Raises:
            DataError: if there is none, or it is of another format.
        """
        path = Path(path)
        try:
            with path.open("r+b") as file:
                memory = mmap.mmap(file.fileno(), 0)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot open the facts page {path}: {error}; the node's agent makes it before it starts ranks") from error
        magic, slots, cell_bytes = _FILE.unpack_from(memory, 0) if len(memory) >= _FILE_HEADER_BYTES else (b"", 0, 0)
        if magic != _MAGIC or cell_bytes != CELL_BYTES or len(memory) != _FILE_HEADER_BYTES + slots * 2 * CELL_BYTES:
            memory.close()
            raise DataError(f"{path} is not a facts page of this version; stop the run that made it, or remove the file")
        return cls(path, memory, slots)

    def write(self, slot: int, facts: Mapping[str, Any]) -> None:
        """Publish `facts`; never blocks. What is too large loses its largest optional fields rather than raise."""
        payload = _fit(facts)
        sequence = max(*(self._header(slot, cell)[0] for cell in (0, 1)), self._sequence[slot]) + 1
        start = self._start(slot, sequence & 1)
        _SEQUENCE.pack_into(self._memory, start, 0)  # whoever reads now, or after our death, takes the other cell
        body = start + _CELL.size
        self._memory[body : body + len(payload)] = payload
        _CELL.pack_into(self._memory, start, 0, len(payload), _checksum(sequence, payload))
        _SEQUENCE.pack_into(self._memory, start, sequence)
        self._sequence[slot] = sequence

    def read(self, slot: int) -> dict[str, Any] | None:
        """The newest complete facts of a slot; None if nothing was ever written, or it was cleared."""
        for _ in range(READ_TRIES):
            empty = 0
            for cell in sorted((0, 1), key=lambda cell: self._header(slot, cell)[0], reverse=True):
                sequence, length, checksum = self._header(slot, cell)
                if sequence == 0:
                    empty += 1
                    continue
                if length > _PAYLOAD_BYTES:
                    continue
                body = self._start(slot, cell) + _CELL.size
                payload = self._memory[body : body + length]
                if _checksum(sequence, payload) == checksum:
                    found = json.loads(payload)
                    return found if isinstance(found, dict) else None
            if empty == 2:  # noqa: PLR2004 (both cells)
                return None
        return None

    def clear(self, slot: int) -> None:
        """Forget what a slot says, for a rank that will not come back."""
        for cell in (0, 1):
            _CELL.pack_into(self._memory, self._start(slot, cell), 0, 0, 0)

    def close(self) -> None:
        """Unmap; the file stays."""
        self._memory.close()

    def unlink(self) -> None:
        """Remove the file; processes that mapped it keep their view."""
        self.path.unlink(missing_ok=True)

    def _start(self, slot: int, cell: int) -> int:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of a facts page with {self.slots} slots")
        return _FILE_HEADER_BYTES + (2 * slot + cell) * CELL_BYTES

    def _header(self, slot: int, cell: int) -> tuple[int, int, int]:
        sequence, length, checksum = _CELL.unpack_from(self._memory, self._start(slot, cell))
        return sequence, length, checksum


def _checksum(sequence: int, payload: bytes) -> int:
    return zlib.crc32(payload, sequence & 0xFFFFFFFF)


def _fit(facts: Mapping[str, Any]) -> bytes:
    payload = _encode(facts).encode()
    if len(payload) <= _PAYLOAD_BYTES:
        return payload
    sizes = {key: len(_encode(value)) for key, value in facts.items() if key not in _ESSENTIAL}
    kept = dict(facts)
    for key in sorted(sizes, key=sizes.__getitem__, reverse=True):
        del kept[key]
        payload = _encode(kept).encode()
        if len(payload) <= _PAYLOAD_BYTES:
            return payload
    return b"{}"
