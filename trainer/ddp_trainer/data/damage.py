"""What the standard library raises on an archive that was cut off or overwritten."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib

DAMAGE = (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, OSError)
"""Of a tar, whatever its compression."""
