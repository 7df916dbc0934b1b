"""The state as one block of memory that is, byte for byte, the data files of a checkpoint.

A snapshot is copied straight into place, and what the background writer puts on disk is the block itself: nothing is serialised twice.
Names are `<file>.<tensor>`, such as `model.conv1.weight`; each file is a safetensors image (u64 header length, JSON header, data).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_FILE_ALIGNMENT = 64
"""Files begin at multiples of this in the block, so that tensors may be viewed in place."""
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class _Part:
    """One file's place in the block."""

    name: str
    start: int
    header: bytes
    end: int


class Image:
    """Where each tensor of a state lies in the block."""

    def __init__(self, parts: tuple[_Part, ...], places: dict[str, tuple[torch.dtype, tuple[int, ...], int]]) -> None:
        self._parts = parts
        self._places = places
        self.bytes = parts[-1].end if parts else 0
        self.fingerprint = hashlib.sha256(repr([(part.name, part.header) for part in parts]).encode()).digest()
        """The same for the same names, types and shapes."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Image:
        """Lay out tensors by their names, types and shapes; their values are not looked at."""
        by_file: dict[str, list[str]] = {}
        for name in tensors:
            by_file.setdefault(name.partition(".")[0], []).append(name)
        parts: list[_Part] = []
        places: dict[str, tuple[torch.dtype, tuple[int, ...], int]] = {}
        end = 0
        for file, names in by_file.items():
            # the widest types first, so that every tensor is aligned to its own elements: the format allows no gaps
            names.sort(key=lambda name: (-tensors[name].element_size(), name))
            part, offsets = _lay_out(file, names, tensors, start=-(-end // _FILE_ALIGNMENT) * _FILE_ALIGNMENT)
            for name, offset in zip(names, offsets, strict=True):
                places[name] = (tensors[name].dtype, tuple(tensors[name].shape), part.start + len(part.header) + offset)
            parts.append(part)
            end = part.end
        return cls(tuple(parts), places)

    def write_headers(self, block: memoryview) -> None:
        """Put the files' headers in place."""
        for part in self._parts:
            block[part.start : part.start + len(part.header)] = part.header

    def views(self, block: memoryview) -> dict[str, Tensor]:
        """Tensors on top of the block: writing to them writes the files."""
        flat = torch.frombuffer(block, dtype=torch.uint8)
        found = {}
        for name, (dtype, shape, start) in self._places.items():
            count = dtype.itemsize * torch.Size(shape).numel()
            found[name] = flat[start : start + count].view(dtype).view(shape)
        return found

    def extents(self) -> list[tuple[str, int, int]]:
        """(file name, start, end) of each data file in the block."""
        return [(part.name, part.start, part.end) for part in self._parts]


def tensors_of(files: Mapping[str, memoryview]) -> dict[str, Tensor]:
    """Parse data files in memory: tensors on top of them, by full name."""
    found: dict[str, Tensor] = {}
    kinds = {code: dtype for dtype, code in _CODES.items()}
    for file, content in files.items():
        (length,) = struct.unpack_from("<Q", content, 0)
        header: dict[str, Any] = json.loads(bytes(content[8 : 8 + length]))
        flat = torch.frombuffer(content, dtype=torch.uint8)[8 + length :]
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                found[f"{file.removesuffix(SUFFIX)}.{name}"] = flat[start:end].view(kinds[entry["dtype"]]).view(entry["shape"])
    return found


def _lay_out(file: str, names: list[str], tensors: Mapping[str, Tensor], start: int) -> tuple[_Part, list[int]]:
    header: dict[str, Any] = {}
    offsets, end = [], 0
    for name in names:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name.partition(".")[2]] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        offsets.append(end)
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _Part(f"{file}{SUFFIX}", start, struct.pack("<Q", len(text)) + text, start + 8 + len(text) + end), offsets
