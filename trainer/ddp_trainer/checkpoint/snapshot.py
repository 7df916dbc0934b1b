"""The memory tier: a node's newest states, in memory that outlives its ranks.

One file in memory (`memfd`) per node, inherited by every process of the node's agent and gone with the last of them: nothing is left
behind, and a container's small /dev/shm does not matter. It has two slots, so that a complete snapshot is always there while the next
one is written, and on node 0 a third, which the background writer may hold.

A slot is numbered when it is complete and has the number 0 while it is written: a writer that is killed in the middle leaves a torn slot
that nobody takes for a state. A reader looks at the number again after it has read. One rank of the node writes.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddp_trainer.errors import DataError

if TYPE_CHECKING:  # this module is for processes without torch, too
    from ddp_trainer.checkpoint.image import Image

_MAGIC = b"DDPSNAP1"
_HEAD = struct.Struct("=8sQQ32s")  # magic, slots, bytes of a slot's block, the image's fingerprint
_WORD = struct.Struct("@Q")  # native, so that a number is stored by one instruction
_PAGE = mmap.PAGESIZE
_WORDS_START = 1024
_EXTENTS_START = 2048
_META_BYTES = 1024 * 1024
"""Room for what goes into the manifest, enough for a task with 10,000 metrics; a few KiB are used, most of it by the metric history."""
_NEXT, _WANTED, _HELD, _LEAVE, _ATTEMPT = range(5)
"""The words: the next number to give, the number that shall become durable, the slot + 1 that the writer holds, the attempt that shall
leave, the newest attempt that this node's agent has begun."""


@dataclass(frozen=True)
class Snapshot:
    """A complete state in memory."""

    slot: int
    number: int
    """Rises with every snapshot of this memory."""
    meta: dict[str, Any]
    """What the manifest says beside the files."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.meta["step"])


class SnapshotMemory:
    """A node's memory file. Made by `create`, then known to all processes of the node by its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory: mmap.mmap | None = None
        self._view: memoryview | None = None
        self._words = mmap.mmap(descriptor, _PAGE)

    @staticmethod
    def create() -> int:
        """A new, empty memory file's descriptor. Fork the processes that shall share it afterwards."""
        descriptor = os.memfd_create("ddp-snapshots")
        os.ftruncate(descriptor, _PAGE)
        return descriptor

    def reserve(self, image: Image, slots: int) -> None:
        """Make room for `slots` states of this form. A memory that has it keeps what it holds.

        Raises:
            DataError: there is not enough memory.
        """
        head = _HEAD.pack(_MAGIC, slots, image.bytes, image.fingerprint)
        if self._words[: _HEAD.size] == head:
            return
        size = _PAGE + slots * _slot_bytes(image.bytes)
        self._words[: _HEAD.size] = _HEAD.pack(bytes(8), slots, image.bytes, image.fingerprint)  # whoever looks now finds nothing
        try:
            os.ftruncate(self.descriptor, size)
            # a hole that cannot be filled later would kill the rank with SIGBUS: take the memory now, with an error to catch
            os.posix_fallocate(self.descriptor, 0, size)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.ENOMEM}:
                raise
            raise DataError(
                f"no memory for {slots} snapshots of {image.bytes / 1e6:.0f} MB on this node: {error.strerror}; "
                f"give it more, or use a smaller model"
            ) from None
        places = json.dumps(image.extents()).encode()
        self._words[_EXTENTS_START : _EXTENTS_START + 2 + len(places)] = len(places).to_bytes(2, "little") + places
        for slot in range(slots):
            self._set_number(slot, 0)
            image.write_headers(self.block(slot))
        self._words[: _HEAD.size] = head

    def write(self, fill: Callable[[int], None], describe: Callable[[], Mapping[str, Any]], *, durable: bool) -> Snapshot:
        """Take a snapshot in a slot that nobody needs.

        Args:
            fill: writes the tensors into the `block` of the slot that it is given.
            describe: called after it: what the manifest says, as JSON values; `step` among it.
            durable: the background writer shall make this one durable; a request that still waits is replaced by it.
        """
        slot = self._spare_slot()
        number = max(self._word(_NEXT), 1)
        self._set_number(slot, 0)
        fill(slot)
        meta = describe()
        text = json.dumps(meta).encode()
        if len(text) > _META_BYTES - 16:
            raise ValueError(f"the description of a snapshot takes {len(text)} bytes and may take {_META_BYTES - 16}")
        start = self._start(slot)
        memory = self._map()
        memory[start + 8 : start + 16] = len(text).to_bytes(8, "little")
        memory[start + 16 : start + 16 + len(text)] = text
        self._set_word(_NEXT, number + 1)  # first: a number is never given twice, whenever this process dies
        self._set_number(slot, number)
        if durable:
            self._set_word(_WANTED, number)
        return Snapshot(slot, number, dict(meta))

    def snapshots(self) -> list[Snapshot]:
        """All complete snapshots, the newest first."""
        found = [snapshot for slot in range(self._slots()) if (snapshot := self._read(slot)) is not None]
        return sorted(found, key=lambda snapshot: snapshot.number, reverse=True)

    def newest(self) -> Snapshot | None:
        """The newest complete snapshot; None if there is none."""
        return next(iter(self.snapshots()), None)

    def forget(self, snapshot: Snapshot) -> None:
        """Drop one that is of no use, so that its slot is the next to be written. Only while nobody writes."""
        if self.is_intact(snapshot):
            self._set_number(snapshot.slot, 0)

    def is_intact(self, snapshot: Snapshot) -> bool:
        """Whether the slot still holds it: asked after reading, since nobody is kept from writing."""
        return self._number(snapshot.slot) == snapshot.number

    def files(self, snapshot: Snapshot) -> dict[str, memoryview]:
        """Its data files' content, in place."""
        length = int.from_bytes(self._words[_EXTENTS_START : _EXTENTS_START + 2], "little")
        places = json.loads(self._words[_EXTENTS_START + 2 : _EXTENTS_START + 2 + length])
        block = self.block(snapshot.slot)
        return {name: block[start:end] for name, start, end in places}

    def checksum(self, snapshot: Snapshot) -> int:
        """CRC-32 of the state: the same on every node that holds the same bits. About 45 ms for 188 MB, without the GIL."""
        total = 0
        for content in self.files(snapshot).values():
            total = zlib.crc32(content, total)
        return total

    def block(self, slot: int) -> memoryview:
        """The memory of a slot's data files."""
        self._map()
        assert self._view is not None
        start = self._start(slot) + _META_BYTES
        return self._view[start : start + self._block_bytes()]

    # --- between the ranks, the writer and the agent -----------------------------------------------------------------------------

    def want_durable(self, snapshot: Snapshot) -> None:
        """Ask the background writer for this snapshot."""
        self._set_word(_WANTED, snapshot.number)

    def wanted_number(self) -> int:
        """The number of the snapshot that shall become durable; 0: none yet."""
        return self._word(_WANTED)

    def wanted(self) -> Snapshot | None:
        """That snapshot, or, if it was overwritten (its writer died, or a newer one took its place), the newest after it."""
        number = self._word(_WANTED)
        found = [s for slot in range(self._slots()) if (s := self._read(slot)) is not None and s.number >= number > 0]
        return min(found, key=lambda snapshot: snapshot.number, default=None)

    def hold(self, snapshot: Snapshot | None) -> None:
        """The writer reads this one; None: no longer."""
        self._set_word(_HELD, 0 if snapshot is None else snapshot.slot + 1)

    def ask_to_leave(self, attempt: int) -> None:
        """The agent: ranks of this attempt shall save and end together at the next step."""
        self._set_word(_LEAVE, attempt)

    def leave_asked(self, attempt: int) -> bool:
        """Whether it did."""
        return self._word(_LEAVE) == attempt

    def begin_attempt(self, attempt: int) -> None:
        """The agent: ranks of this attempt are about to start."""
        self._set_word(_ATTEMPT, attempt)

    def attempt(self) -> int:
        """The newest one that this node's agent has begun: a run directory that knows of a newer one belongs to somebody else by now."""
        return self._word(_ATTEMPT)

    # --- inside ------------------------------------------------------------------------------------------------------------------

    def _spare_slot(self) -> int:
        """The oldest slot that nobody needs; see `spare`."""
        return spare([self._number(slot) for slot in range(self._slots())], self._word(_WANTED), self._word(_HELD) - 1)

    def _read(self, slot: int) -> Snapshot | None:
        number = self._number(slot)
        if number == 0:
            return None
        memory, start = self._map(), self._start(slot)
        length = int.from_bytes(memory[start + 8 : start + 16], "little")
        if length > _META_BYTES - 16:
            return None
        text = memory[start + 16 : start + 16 + length]
        if self._number(slot) != number:
            return None
        return Snapshot(slot, number, json.loads(text))

    def _slots(self) -> int:
        magic, slots, _, _ = _HEAD.unpack_from(self._words, 0)
        return int(slots) if magic == _MAGIC else 0

    def _block_bytes(self) -> int:
        return int(_HEAD.unpack_from(self._words, 0)[2])

    def _start(self, slot: int) -> int:
        return _PAGE + slot * _slot_bytes(self._block_bytes())

    def _number(self, slot: int) -> int:
        return int(_WORD.unpack_from(self._map(), self._start(slot))[0])

    def _set_number(self, slot: int, number: int) -> None:
        _WORD.pack_into(self._map(), self._start(slot), number)

    def _word(self, which: int) -> int:
        return int(_WORD.unpack_from(self._words, _WORDS_START + 8 * which)[0])

    def _set_word(self, which: int, value: int) -> None:
        _WORD.pack_into(self._words, _WORDS_START + 8 * which, value)

    def _map(self) -> mmap.mmap:
        size = os.fstat(self.descriptor).st_size
        if self._memory is None or len(self._memory) != size:
            # with all pages present, the first snapshot costs what the others do
            self._memory = mmap.mmap(self.descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            self._view = memoryview(self._memory)
        return self._memory


def spare(numbers: Sequence[int], waiting: int, held: int) -> int:
    """Which slot may be overwritten: the oldest of those that are needed least.

    Not what the writer holds, nor what waits for it. The newest gives way before those: if the rank dies in this very write, the one that
    waits is fallen back to. With two slots and no writer, the older one is overwritten.

    Args:
        numbers: of each slot's snapshot, 0 for none.
        waiting: the number that shall become durable.
        held: the slot that the writer reads; -1 for none.
    """
    newest = max(range(len(numbers)), key=numbers.__getitem__)

    def need(slot: int) -> int:
        if slot == held:
            return 3
        if numbers[slot] == waiting != 0:
            return 2
        return int(slot == newest and numbers[slot] != 0)

    return min(range(len(numbers)), key=lambda slot: (need(slot), numbers[slot]))


def _slot_bytes(block_bytes: int) -> int:
    return _META_BYTES + -(-block_bytes // _PAGE) * _PAGE
