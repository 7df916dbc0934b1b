"""The manifest of a checkpoint: what it holds, and how to prove that it holds it.

A checkpoint is a folder `step-000000420/` with `manifest.json` and the files that the manifest lists with size and SHA-256. A reader
needs nothing else: tensors are safetensors, everything else is JSON, and nothing is ever unpickled. The manifest ends with its own SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ddp_trainer.errors import DataError

FORMAT_VERSION = 3
MANIFEST_NAME = "manifest.json"
PREFIX = "step-"
_SEAL, _END = b',\n "sha256": "', b"\n}"
"""What stands before the manifest's own hash, which is of all bytes before this, and what closes the document."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""What a data file may be called: nothing that leads out of the folder."""
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that say something about the checkpoint; any other is the volume's, and may pass."""
HASHING_THREADS = 4
"""Files that are hashed at the same time: there are two large ones."""
_BLOCK_BYTES = 4 * 1024 * 1024
"""Read size while hashing: large enough to keep SHA-256 (about 1.5 GB/s) busy, small beside the page cache."""


def _unheard() -> None:
    """Nobody wants to know how the hashing gets on."""


class FileEntry(BaseModel):
    """One data file of the checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What was saved, and from where a run goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    format_version: int = FORMAT_VERSION
    step: Annotated[int, Field(ge=0)]
    """Optimizer steps done."""
    epoch: Annotated[int, Field(ge=0)]
    """Passes over the training set completed."""
    sample_offset: Annotated[int, Field(ge=0)]
    """Samples of the current epoch already used: with the seed, the whole state of the data."""
    global_batch: int
    micro_batches: int
    world_size: int
    """Ranks that wrote it; any other number that divides the micro-batches may go on."""
    seed: int
    config_hash: str
    identity: dict[str, Any]
    """The configuration keys that must agree on resume."""
    data_fingerprint: str
    attempt: int
    """Which start of the run wrote it."""
    saved_at: float
    """Seconds since the epoch."""
    wall_seconds: float
    """Training time of the run so far, over all attempts."""
    metrics: dict[str, float] = {}
    """Of the last evaluation before it, as far as they are finite; empty if there was none."""
    skipped: list[tuple[int, int]] = []
    """Windows of 0-based steps that were passed over after a divergence: (first, one after the last)."""
    libraries: dict[str, str]
    files: dict[str, FileEntry]

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        """JSON has no word for the others: a loss that is not finite would make the manifest unreadable."""
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    @property
    def total_bytes(self) -> int:
        """Size of the data files together."""
        return sum(entry.bytes for entry in self.files.values())


class OtherFormatError(DataError):
    """A checkpoint of another version of this program: not bad, but not to be read here."""


class BadCheckpointError(Exception):
    """A checkpoint that cannot be trusted: the message is the reason, which quarantine keeps."""


def folder_name(step: int) -> str:
    """`step-000000420`: sorts by step."""
    return f"{PREFIX}{step:09d}"


def step_of(folder: Path) -> int | None:
    """The step a folder's name claims, or None if it is not a checkpoint's name."""
    digits = folder.name.removeprefix(PREFIX)
    step = int(digits) if digits.isascii() and digits.isdigit() else None
    return step if step is not None and folder.name == folder_name(step) else None


def sealed(document: bytes) -> bytes:
    """A manifest's JSON as it stands in the file: with its SHA-256 as the last key. `document` is indented, and ends with a line of `}`."""
    body = document.removesuffix(_END)
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"' + _END


def read_manifest(folder: Path) -> Manifest:
    """Parse a checkpoint's manifest without looking at its data.

    Raises:
        BadCheckpointError: missing, torn, other than it was written, or with file names that lead out of the folder.
        OtherFormatError: whole, but written by another version of this program.
        OSError: the volume cannot be read now, which says nothing about the checkpoint.
    """
    try:
        text = (folder / MANIFEST_NAME).read_bytes()
    except MISSING as error:
        raise BadCheckpointError(f"manifest unreadable: {error.strerror}") from None
    body, seal, _ = text.rpartition(_SEAL)
    document = body + _END if seal else text  # without one it is torn, or of a version that had none
    if seal and sealed(document) != text:  # before anything in it is believed, its version included
        raise BadCheckpointError("manifest: SHA-256 differs from the one that it ends with")
    _assert_version(folder, document)
    try:
        manifest = Manifest.model_validate_json(document)
    except ValidationError as error:
        raise BadCheckpointError(f"manifest invalid: {error.errors()[0]['msg']}") from None
    if not seal:
        raise BadCheckpointError("manifest invalid: it does not end with its SHA-256")
    if manifest.step != step_of(folder):
        raise BadCheckpointError(f"manifest says step {manifest.step}")
    for name in manifest.files:
        if not _PLAIN_NAME.fullmatch(name):
            raise BadCheckpointError(f"{name!r} is not a plain file name")
    return manifest


def _assert_version(folder: Path, text: bytes) -> None:
    try:
        version = json.loads(text)["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # torn, or nested without end: pydantic says what is wrong
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise OtherFormatError(
            f"{folder} is of format version {version} and this program reads {FORMAT_VERSION}; "
            f"use the version that wrote it, or another --run-dir"
        )


def verify(folder: Path, hashed: Callable[[], None] = _unheard) -> Manifest:
    """Read and hash every file of a checkpoint, several at a time (hashing releases the interpreter lock).

    `hashed` is called after each block, on the threads that hash: a large checkpoint takes minutes.

    Raises:
        BadCheckpointError: with the file and what is wrong with it.
        OtherFormatError: as `read_manifest`.
        OSError: the volume cannot be read now.
    """
    manifest = read_manifest(folder)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        for _ in threads.map(lambda item: _verify_file(folder / item[0], item[1], hashed), manifest.files.items()):
            pass
    return manifest


def _verify_file(path: Path, entry: FileEntry, hashed: Callable[[], None]) -> None:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):  # a link may lead anywhere, and opening a pipe would block for ever
            raise BadCheckpointError(f"{path.name}: not a regular file")
        size = status.st_size
        digest = sha256_of(path, hashed) if size == entry.bytes else ""
    except MISSING as error:
        raise BadCheckpointError(f"{path.name}: {error.strerror}") from None
    if size != entry.bytes:
        raise BadCheckpointError(f"{path.name}: {size} bytes, the manifest says {entry.bytes}")
    if digest != entry.sha256:
        raise BadCheckpointError(f"{path.name}: SHA-256 differs from the manifest's")


def sha256_of(path: Path, hashed: Callable[[], None] = _unheard) -> str:
    """SHA-256 of a file, in hex; `hashed` is called after each block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            hashed()
    return digest.hexdigest()
