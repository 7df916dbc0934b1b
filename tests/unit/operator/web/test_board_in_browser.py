import asyncio
import re
import shutil

import pytest
from board_runs import NOW, hostile, run

from ddp_operator.web.server import Sources, serve

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0")  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")
async def test_the_page_renews_itself_under_its_policy_and_a_hostile_run_does_nothing_to_it(tmp_path):
    looks = iter(range(10**9))

    def runs():
        return [hostile(), run("seen-first" if (look := next(looks)) < 2 else f"seen-later-{look}")]

    runner = await serve(0, Sources(runs=runs, clock=lambda: NOW), "127.0.0.1")
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
