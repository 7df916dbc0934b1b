"""`ddp top` against real servers."""

import io
import json

import pytest

from ddp_trainer.errors import DataError
from ddp_trainer.telemetry.document import Checkpoint, Gpu, Progress, Rank
from ddp_trainer.telemetry.server import StatusServer
from ddp_trainer.telemetry.top import top

SAVED = Checkpoint(step=240, saved_at=1e9, bytes=188, stall_seconds=0.4, persist_seconds=0.4, verified=True)


def progress(node, *ranks, **changes):
    rows = [
        Rank(
            rank=rank, phase="training", step=270, samples_per_second=75.2, cpu_percent=98.0, rss_bytes=2**30, pid=1, updated_at=1e9, gpu=0
        )
        for rank in ranks
    ]
    base = {"run": "demo", "node": node, "attempt": 1, "phase": "training", "step": 270, "total_steps": 625, "updated_at": 1e9}
    return Progress(**{**base, "world_size": 4, "samples_per_second": 301.0, "loss": 1.63, "checkpoint": SAVED, "ranks": rows, **changes})


@pytest.fixture
def serve():
    servers = []

    def start(document):
        server = StatusServer("127.0.0.1", 0)
        server.start()
        servers.append(server)
        server.progress = lambda: document
        return server

    yield start
    for server in servers:
        server.stop()


def shown(*targets):
    out = io.StringIO()
    top([str(target) for target in targets], once=True, stream=out)
    return out.getvalue()


def rows(text, phase):
    return [line.split() for line in text.splitlines() if phase in line and "demo" not in line]


def test_the_ranks_of_two_nodes_stand_in_one_table(serve):
    nodes = [serve(progress(0, 0, 1).to_bytes()), serve(progress(1, 2, 3).to_bytes())]
    text = shown(*(node.url for node in nodes))
    assert "\x1b" not in text
    assert "step 270/625" in text
    assert "301 samples/s" in text
    found = rows(text, "training")
    assert [row[row.index("training") - 1] for row in found] == ["0", "1", "2", "3"]
    assert [row[0] for row in found if len(row) > len(found[1])] == ["0", "1"]


def test_a_node_that_does_not_answer_is_a_row_that_says_so(serve):
    alive, gone = serve(progress(0, 0).to_bytes()), serve(None)
    gone.stop()
    text = shown(alive.url, gone.url)
    assert len(rows(text, "training")) == 1
    assert rows(text, "unreachable")[0][0] == f":{gone.port}"
    assert f"{gone.url} did not answer" in text


def test_a_node_without_progress_and_one_that_is_no_node_are_rows_as_well(serve):
    text = shown(serve(None).url, serve(b"<html>").url)
    assert len(rows(text, "unreachable")) == 2
    assert "no progress yet" in text
    assert "is this the address of a ddp run?" in " ".join(text.split())


def test_a_run_directory_leads_to_its_agents(serve, tmp_path):
    node = serve(progress(0, 0).to_bytes())
    (tmp_path / "endpoints.json").write_text(json.dumps({"nodes": [node.url]}))
    assert len(rows(shown(tmp_path), "training")) == 1


def test_a_run_whose_agents_are_gone_shows_what_was_recorded(serve, tmp_path):
    gone = serve(None)
    gone.stop()
    (tmp_path / "endpoints.json").write_text(json.dumps({"nodes": [gone.url]}))
    (tmp_path / "progress.json").write_bytes(progress(0, 0, phase="finished").to_bytes())
    text = shown(tmp_path)
    assert "demo  finished" in text
    assert "no agent is running; this was recorded" in text


def test_an_ended_run_whose_endpoints_were_removed_shows_what_was_recorded(tmp_path):
    (tmp_path / "progress.json").write_bytes(progress(0, 0, phase="finished").to_bytes())
    text = shown(tmp_path)
    assert "demo  finished" in text
    assert "NODE" not in text


def test_gpu_columns_appear_where_there_are_gpus(serve):
    gpu = Gpu(index=0, name="NVIDIA H100", utilization_ratio=0.87, memory_used_bytes=10**10, memory_total_bytes=8 * 10**10)
    text = shown(serve(progress(0, 0, gpus=[gpu]).to_bytes()).url)
    assert " 87% " in text
    assert "10 GB" in text
    assert "GPU" not in shown(serve(progress(0, 0).to_bytes()).url)


def test_a_node_whose_ranks_have_not_spoken_is_a_row(serve):
    assert len(rows(shown(serve(progress(3, phase="starting").to_bytes()).url), "starting")) == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "has no endpoints.json"), ("{", "does not say"), ("[]", "does not say"), ('{"nodes": [1]}', "does not say")],
)
def test_a_run_directory_without_usable_endpoints_is_explained(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "endpoints.json").write_text(content)
    with pytest.raises(DataError, match=complaint):
        shown(tmp_path)


def test_a_target_that_is_nothing_is_explained(tmp_path):
    with pytest.raises(DataError, match="neither a run directory nor an agent's address"):
        shown(tmp_path / "none")
