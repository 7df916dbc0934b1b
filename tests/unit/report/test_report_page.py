import base64
import hashlib
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from written_run import write_run

from ddp_trainer.errors import ConfigError, DataError
from ddp_trainer.report.numbers import UNKNOWN
from ddp_trainer.report.page import write_report
from ddp_trainer.telemetry.evaluation import write_evaluation
from ddp_trainer.telemetry.events import EventLog
from ddp_trainer.telemetry.jsonl import JsonLines

SECTIONS = ("headline", "timeline", "recovery", "learning", "speed", "classes", "samples", "checkpoints", "config", "events")
CHARTS = ("timeline", "loss", "accuracy", "throughput", "learning_rate", "per_class", "confusion")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.ids, self.scripts = [], [], [], []
        self._inside = None
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[name] for name in ("src", "href", "action", "data", "poster", "srcset") if name in found]
        self._inside = (tag, found)
        if tag == "script":
            self.scripts.append([found, ""])

    def handle_endtag(self, tag):  # noqa: ARG002 - the base class's signature
        self._inside = None

    def handle_data(self, data):
        if self._inside and self._inside[0] == "script":
            self.scripts[-1][1] += data
        elif not (self._inside and self._inside[0] == "style"):
            self.words += data


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def html(finished_run):
    return write_report(finished_run).read_text(encoding="utf-8")


def test_report_lies_in_the_run_directory_by_default_and_elsewhere_on_request(finished_run, tmp_path):
    assert write_report(finished_run) == finished_run / "report.html"
    assert write_report(finished_run, tmp_path / "mine.html").read_bytes() == (finished_run / "report.html").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["mine.html"]


def test_page_has_every_section_and_every_chart(html):
    page = Page(html)
    assert set(SECTIONS) <= set(page.ids)
    assert [a["data-chart"] for _, a in page.tags if "data-chart" in a] == list(CHARTS)
    figures = json.loads(next(text for attrs, text in page.scripts if attrs.get("id") == "figures"))
    assert all(figures[name]["data"] for name in CHARTS)


def test_headline_tells_accuracy_time_restarts_lost_steps_and_goodput(html):
    words = " ".join(Page(html).words.split())
    for expected in ("44.6 %", "3 min 2", "4 ranks on 4 nodes", "1 crash", "3.7 % of all steps made", "90.4 %", "torch 2.15.0", "finished"):
        assert expected in words
    assert "1 fault and was training again in 2.7 s, at a cost of 12 steps" in words


def test_incident_is_told_phase_by_phase_and_with_what_its_ranks_were_doing(html):
    section = html.split('id="recovery"')[1].split("</section>")[0]
    cells = re.findall(r'<td class="n">(?:<b>)?([^<]*)', section)
    assert cells[1:] == [UNKNOWN, "900 ms", "1.3 s", "544 ms", "2.7 s", "12"]
    folded = re.search(r"<details[^>]*>(.*?)</details>", section, re.DOTALL)[1]
    assert "rank 2" in folded
    assert "_engine_run_backward" in folded


def test_bar_of_the_run_time_has_the_parts_in_proportion(html):
    bar = html.split('class="split"')[1].split("</div>")[0]
    grown = [float(share) for share in re.findall(r"flex-grow:([\d.]+)", bar)]
    assert sum(grown) == pytest.approx(1, abs=1e-5)
    assert re.findall(r'title="([^,]+),', bar) == ["training that lasted", "lost work", "recovery", "copies of the state", "start"]


def test_settings_that_differ_from_the_defaults_are_marked(html):
    marked = re.findall(r'<dt title="[^"]*">(\w+)</dt><dd class="mono changed">([^<]*)<small>default ([^<]*)</small>', html)
    assert marked == [("name", "demo", "run"), ("nodes", "4", "1"), ("lr", "0.05", "0.1"), ("every_seconds", "20.0", "15.0")]


def test_sample_pictures_are_the_very_pixels_and_say_right_or_wrong(html):
    figures = re.findall(r'<figure class="(right|wrong)">\s*<img src="data:image/png;base64,([^"]+)"', html)
    assert [word for word, _ in figures] == ["wrong"] * 12 + ["right"] * 12
    assert all(base64.b64decode(png).startswith(b"\x89PNG") for _, png in figures)


def test_page_asks_for_nothing_outside_itself(html):
    page = Page(html)
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"url\(|@import", html)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")


def test_only_script_that_runs_is_the_one_the_policy_names(html):
    page = Page(html)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    running = [text for attrs, text in page.scripts if attrs.get("type") not in {"application/json", "text/plain"}]
    assert len(running) == 1
    assert base64.b64encode(hashlib.sha256(running[0].encode()).digest()).decode() in policy


def test_hostile_text_of_a_run_stays_text(tmp_path):
    run_dir = write_run(tmp_path / "demo", message=HOSTILE)
    config = json.loads((run_dir / "config.json").read_text())
    config["run"]["name"] = config["task"]["name"] = HOSTILE
    config[HOSTILE] = {HOSTILE: HOSTILE}
    (run_dir / "config.json").write_text(json.dumps(config))
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    evaluation["classes"][0] = HOSTILE
    evaluation["samples"][0]["png"] = '"><script>alert(3)</script>'
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    EventLog(run_dir / "events.jsonl").append("note", message=HOSTILE)
    html = write_report(run_dir).read_text(encoding="utf-8")
    page = Page(html)
    assert "alert(1)" in page.words
    assert "{{ 7*7 }}" in page.words
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3
    assert "alert(3)" not in html


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("config.json", "config.json was not written."),
        ("events.jsonl", "No events were recorded."),
        ("metrics.jsonl", "The run recorded nothing to draw here."),
        ("progress.json", "progress.json was not written."),
        ("evaluation.json", "There is no final evaluation"),
    ],
)
def test_missing_file_gives_a_page_that_says_so(finished_run, tmp_path, file, says):
    run_dir = tmp_path / "demo"
    shutil.copytree(finished_run, run_dir)
    (run_dir / file).unlink()
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert says in html
    assert f"{file} was not written." in html


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"nul", b"[" * 100_000], ids=str)
def test_files_full_of_rubbish_do_not_break_the_page(finished_run, tmp_path, content):
    run_dir = tmp_path / "demo"
    shutil.copytree(finished_run, run_dir)
    for file in ("config.json", "progress.json", "evaluation.json", "metrics.jsonl", "config_hash"):
        (run_dir / file).write_bytes(content)
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "config.json" in html.split('id="missing"')[1]


def test_run_that_failed_before_its_first_step_says_why(tmp_path):
    run_dir = tmp_path / "early"
    log = EventLog(run_dir / "events.jsonl")
    log.append("start", attempt=0, nodes=2, procs_per_node=1)
    log.append("stop", cause="data_error", exit=3, message="the folder /data/train/cat is empty")
    words = " ".join(Page(write_report(run_dir).read_text(encoding="utf-8")).words.split())
    assert "failed after" in words
    assert "the folder /data/train/cat is empty" in words


@pytest.mark.parametrize("exists", [True, False])
def test_directory_without_a_run_is_refused_in_a_sentence(tmp_path, exists):
    run_dir = tmp_path / "nothing"
    if exists:
        run_dir.mkdir()
    with pytest.raises(DataError, match=r"nothing.*such as runs/demo"):
        write_report(run_dir)


def test_target_that_cannot_be_written_is_named(finished_run, tmp_path):
    with pytest.raises(DataError, match=r"cannot write the report .*gone/report\.html: No such file"):
        write_report(finished_run, tmp_path / "gone" / "report.html")


def test_target_whose_name_is_too_long_is_named(finished_run, tmp_path):
    with pytest.raises(DataError, match=r"cannot write the report .*x\.html: File name too long"):
        write_report(finished_run, tmp_path / ("x" * 300 + ".html"))


def test_directory_whose_name_is_too_long_is_named(tmp_path):
    with pytest.raises(DataError, match=r"run directory .*xxx cannot be read: File name too long"):
        write_report(tmp_path / ("x" * 300))


def test_half_a_character_in_the_files_is_shown_as_its_number(tmp_path):
    run_dir = write_run(tmp_path / "demo", message="lost \ud800 half")
    JsonLines(run_dir / "metrics.jsonl").append({"kind": "train", "step": 400, "time": 1_760_000_500.0, "loss": "\ud801", "\ud802": 1})
    (run_dir / "config.json").write_text(json.dumps({"run": {"name": "a\ud803b"}}))
    words = Page(write_report(run_dir).read_text(encoding="utf-8")).words
    assert r"lost \ud800 half" in words
    assert r"a\ud803b" in words


def test_without_plotly_the_error_says_what_to_install(finished_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r"pip install 'ddp-operator\[report\]'"):
        write_report(finished_run)


def test_page_of_a_very_long_run_stays_below_five_megabytes(finished_run, tmp_path):
    run_dir = tmp_path / "long"
    shutil.copytree(finished_run, run_dir)
    metrics, events = JsonLines(run_dir / "metrics.jsonl"), EventLog(run_dir / "events.jsonl")
    for step in range(1000, 5000):
        numbers = {"loss": 1 / step, "accuracy": 1 - 1 / step, "lr": 0.1 / step, "samples_per_second": 100 + 1 / step}
        metrics.append({"kind": "train", "step": step, "epoch": step / 7, "time": 1.76e9 + step / 3, "attempt": 1, **numbers})
        events.append("note", message="x" * 900)
    noise = np.random.default_rng(0).integers(0, 256, (24, 200, 200, 3), dtype=np.uint8)
    ones = np.zeros(24, dtype=np.int64)
    write_evaluation(
        run_dir, step=9, classes=["a"], targets=ones, predictions=ones, confidences=np.ones(24), picture=lambda index: noise[index]
    )
    assert write_report(run_dir).stat().st_size < 5_000_000
