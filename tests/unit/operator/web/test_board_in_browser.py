import asyncio
import re
import shutil
import struct
import zlib

import pytest
from board_runs import cast, found_in, hostile, run, sources_of

from ddp_operator.web import server
from ddp_operator.web.server import serve

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0")  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")
async def test_the_page_renews_itself_under_its_policy_and_a_hostile_run_does_nothing_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "OVERVIEW_SECONDS", 0.0)  # the browser's clock runs faster than ours
    looks, shown = iter(range(10**9)), []

    def runs():
        shown[:] = [hostile(), run("seen-first" if (look := next(looks)) < 1 else f"seen-later-{look}")]
        return shown

    runner = await serve(0, sources_of(runs, run=found_in(shown)), "127.0.0.1")
    address = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path}", "--virtual-time-budget=7000", "--dump-dom", address]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        dom, said = (text.decode() for text in await asyncio.wait_for(process.communicate(), 120))
    finally:
        await runner.cleanup()
    assert "seen-later-" in dom
    assert "seen-first" not in dom
    assert "stale" not in re.search(r"<body[^>]*>", dom)[0]
    console = [line for line in said.splitlines() if "CONSOLE" in line]
    assert console == []  # neither our policy refused something of ours, nor did anything hostile get as far as to be refused


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")
@pytest.mark.parametrize("path", ["/", "/runs/team-a/resnet"])
async def test_the_page_is_painted(path, tmp_path):
    runner = await serve(0, sources_of(cast), "127.0.0.1")
    picture, profile = tmp_path / "page.png", tmp_path / "profile"
    asked = (f"--user-data-dir={profile}", f"--screenshot={picture}", "--window-size=1200,900", "--force-device-scale-factor=1")
    address = f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
    try:
        process = await asyncio.create_subprocess_exec(BROWSER, *QUIET, *asked, address, stderr=asyncio.subprocess.DEVNULL)
        assert await asyncio.wait_for(process.wait(), 120) == 0
    finally:
        await runner.cleanup()
    size, colours = seen_in(picture.read_bytes())
    assert size == (1200, 900)
    assert len(colours) > 8  # text, lines and tones: a blank page, or an error's, has fewer


def seen_in(png):
    """Width and height, and the colours that appear in the bytes of its rows (8-bit RGB or RGBA, each filtered against the one above)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += length + 12
    width, height, depth, kind = struct.unpack(">IIBB", chunks[0][1][:10])
    assert (depth, kind) in {(8, 2), (8, 6)}
    step = 3 if kind == 2 else 4
    data = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    above, colours = bytes(width * step), set()
    for row in range(height):
        start = row * (width * step + 1)
        above = unfiltered(data[start], data[start + 1 : start + 1 + width * step], above, step)
        colours.update(above[i : i + 3] for i in range(0, len(above), step))
    return (width, height), colours


def unfiltered(kind, row, above, step):
    """A row of a PNG, as its standard has it: filters 0 to 4."""
    made = bytearray(row)
    for i in range(len(row)) if kind else ():
        left, up, corner = (made[i - step] if i >= step else 0), above[i], (above[i - step] if i >= step else 0)
        guess = left + up - corner
        paeth = min((left, up, corner), key=lambda near: abs(guess - near))
        made[i] = (row[i] + (0, left, up, (left + up) // 2, paeth)[kind]) % 256
    return bytes(made)
