"""Decode images while an image is built, so that no container has to: `python /opt/ddp/bake.py sample|TAR SIZE`.

What is decoded goes to /opt/ddp/cache, where the chart has the trainer look first (data.seed_cache_dir). A tar of one's own is copied to
/opt/ddp/data/<its name>, which is what data.source has to say then. SIZE is the side in pixels, as in data.image_size.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from ddp_trainer.data.cache import open_or_build
from ddp_trainer.data.sources import resolve
from ddp_trainer.errors import DdpError

HOME = Path("/opt/ddp")


def main(source: str, size: int, home: Path = HOME) -> str:
    """Bake, and say what.

    Raises:
        DataError: the tar cannot be used.
    """
    cache, data = home / "cache", home / "data"
    for folder in (cache, data):
        folder.mkdir(parents=True, exist_ok=True)
    shipped = source if source == "sample" else str(ship(Path(source), data))
    decoded = open_or_build(resolve(shipped, cache), size, cache, lambda *_: None)
    decoded.folder.chmod(0o755)  # the container may run as any user
    for path in decoded.folder.iterdir():
        path.chmod(0o644)
    counts = f"{len(decoded.train.labels)} + {len(decoded.test.labels)}"
    return f"data.source={shipped}: {counts} images of {size} x {size} pixels are decoded in {decoded.folder}"


def ship(tar: Path, data: Path) -> Path:
    """Copy the tar in. The cache knows it by its time of change, of which an image's layer keeps whole seconds only."""
    there = data / tar.name
    shutil.copyfile(tar, there)
    there.chmod(0o644)
    seconds = int(tar.stat().st_mtime)
    os.utime(there, (seconds, seconds))
    return there


if __name__ == "__main__":
    try:
        print(main(sys.argv[1], int(sys.argv[2])))
    except DdpError as error:
        sys.exit(f"bake: {error}")
