"""Images in one tar file (plain, gzip, bzip2 or xz) holding `train/<class>/<image>` and `test/<class>/<image>`.

Read as a stream, twice: once for the names, once for the images; nothing is unpacked to disk. Leading folders before train/ and test/
are passed over. A truncated archive is an error even where the cut falls between two members, which `tarfile` alone takes for the end.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self, cast

from ddp_trainer.data.damage import DAMAGE
from ddp_trainer.data.source import SPLITS, Encoded, Listing, Report, arrange, is_image
from ddp_trainer.errors import DataError

_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
"""Compression by the file's first bytes, whatever its suffix says."""
_REPORT_EVERY_FILES = 1000
_DRAIN_BYTES = 1 << 20


class _Member(tarfile.TarInfo):
    """Remembers that the end-of-archive block was seen."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:  # the argument's name is the standard library's
        try:
            return super().fromtarfile(tarfile)
        except _EndOfArchive:
            cast("Any", tarfile).end_was_seen = True
            raise


_EndOfArchive = tarfile.EOFHeaderError  # type: ignore[attr-defined]  # missing in typeshed, there since 3.2


class ImageTar:
    """A tar of class folders."""

    def __init__(self, path: Path, content_hash: str | None = None) -> None:
        """With `content_hash` the identity is that hash; else path, size and time of the file."""
        self.path, self.title = path.resolve(), f"the archive {path}"
        self._content_hash = content_hash
        self._positions: dict[tuple[str, str, str], int] = {}

    def identity(self) -> str:
        """The same for the same file, unless it was written to."""
        if self._content_hash is not None:
            return f"tar {self._content_hash}"
        stat = self.path.stat()
        return f"tar {self.path} {stat.st_size} {stat.st_mtime_ns}"

    def listing(self, report: Report) -> Listing:
        """Names of all image members."""
        folders: set[tuple[str, str]] = set()
        files: list[tuple[str, str, str]] = []
        for place, _ in self.members(read=False):
            if place[2] == "":
                folders.add(place[:2])
            elif is_image(place[2]):
                files.append(place)
                if len(files) % _REPORT_EVERY_FILES == 0:
                    report("listing images", len(files), 0)
        listing, self._positions = arrange(self.title, folders, files)
        return listing

    def images(self) -> Iterator[Encoded]:
        """Members in the order of the archive."""
        for place, content in self.members(read=True):
            position = self._positions.get(place)
            if position is not None:
                yield Encoded(place[0], position, f"{self.path}:{'/'.join(place)}", content)

    def members(self, *, read: bool) -> Iterator[tuple[tuple[str, str, str], bytes]]:
        """Place of each image or class folder, and if `read` its content; then proof that the archive was whole."""
        last = "its start"
        try:
            with self._open() as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
                for member in archive:
                    place = _place(member)
                    if place:
                        content = archive.extractfile(member) if read else None
                        yield place, content.read() if content else b""
                    last = member.name
                    cast("Any", archive).members.clear()  # tarfile keeps every member it has seen, 1 KB each
                if not getattr(archive, "end_was_seen", False):
                    raise tarfile.ReadError("it ends without the end-of-archive mark")
                while stream.read(_DRAIN_BYTES):  # the compressor's own checksum comes last
                    pass
        except DAMAGE as error:
            raise DataError(f"{self.title} is truncated or damaged after {last}: {error}; copy or download it again") from None

    def _open(self) -> IO[bytes]:
        with self.path.open("rb") as file:
            start = file.read(max(len(magic) for magic, _ in _OPENERS))
        for magic, opener in _OPENERS:
            if start.startswith(magic):
                return cast("IO[bytes]", opener(self.path, "rb"))
        return self.path.open("rb")


def _place(member: tarfile.TarInfo) -> tuple[str, str, str] | None:
    """(split, class, file) of a member, with an empty file for a class folder; None for anything else."""
    parts = [part for part in member.name.split("/") if part not in {"", "."}]
    if member.isfile() and len(parts) >= 3 and parts[-3] in SPLITS:  # noqa: PLR2004 - split, class, file
        return parts[-3], parts[-2], parts[-1]
    if member.isdir() and len(parts) >= 2 and parts[-2] in SPLITS:  # noqa: PLR2004 - split, class
        return parts[-2], parts[-1], ""
    return None
