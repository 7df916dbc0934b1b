import shutil
import subprocess

import pytest
from written_run import write_run

from ddp_trainer.report.page import write_report

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")
def test_real_browser_unpacks_plotly_under_the_policy_and_draws_every_chart(tmp_path):
    page = write_report(write_run(tmp_path / "demo"))
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-ready="yes"' in dom
    assert dom.count('class="plot-container plotly"') == 7
