"""Cut the sample that ships with this package: `python -m ddp_trainer.data.sample SOURCE DEST`.

Provenance: CIFAR-10 (Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009), here its 60,000 images as JPEG in
one tar, `train/<class>/NNNN.jpg` and `test/<class>/NNNN.jpg`. The sample is the first 500 training and 100 test images of each
class in the order of their names, which is the order of the data set and so as good as random. The JPEG bytes are copied as they are.
Times, owners and modes are fixed, so the same source gives the same tar, byte for byte (the gzip around it depends on the zlib version).
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import tarfile
from pathlib import Path

from ddp_trainer.data.archive import ImageTar
from ddp_trainer.data.source import is_image
from ddp_trainer.errors import DdpError

PER_CLASS = {"train": 500, "test": 100}


def cut(source: Path, destination: Path) -> int:
    """Write the sample of the tar `source` to `destination`, and return its number of images.

    Raises:
        DataError: the source is damaged or holds no images.
    """
    chosen: dict[str, bytes] = {}
    rank_in_class: dict[tuple[str, str], int] = {}
    for place, content in sorted(ImageTar(source).members(read=True)):
        split, label, file = place
        if not is_image(file):
            continue
        rank = rank_in_class[split, label] = rank_in_class.get((split, label), -1) + 1
        if rank < PER_CLASS[split]:
            chosen["/".join(place)] = content
    with (
        destination.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=9, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in chosen.items():
            member = tarfile.TarInfo(name)  # mode 0644, owner 0, time 0
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return len(chosen)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ddp_trainer.data.sample", description="Cut a small balanced sample from a tar of CIFAR-10 images."
    )
    parser.add_argument("source", type=Path, help="tar with train/<class>/<image> and test/<class>/<image>")
    parser.add_argument("destination", type=Path, help="the .tar.gz to write")
    arguments = parser.parse_args()
    try:
        count = cut(arguments.source, arguments.destination)
    except (DdpError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{arguments.destination}: {count} images, {arguments.destination.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
