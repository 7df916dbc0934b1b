"""Only the first start of a compiled run compiles: what it compiled is kept, and a second start takes all of it from there. Said by the
ranks' own counters, and by the C++ compiler, which is watched.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import WARM

from ddp_trainer.resilience.zygote import Zygote

HERE = Path(__file__).parent
COMPILER = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here: that a second start compiles nothing is NOT tested")

WATCHED = """#!/bin/sh
echo "$@" >> {calls}
exec {compiler} "$@"
"""


@dataclass(frozen=True)
class Start:
    compiled: list[int]
    """Graphs, by rank."""
    kept: list[int]
    """Graphs that came from the cache, by rank."""
    sources: list[str]
    """C++ files that the compiler was given. Torch's precompiled header is none: it is kept below /tmp, and made again where it is not."""


@pytest.fixture(scope="module")
def warm():
    """With the compiler in it: its import, seconds for each rank, is not what is compiled."""
    zygote = Zygote.fork((*WARM, "torch._inductor.compile_fx", "torch._inductor.codegen.cpp", "torch.export"))
    zygote.wait_ready()
    yield zygote
    zygote.close()


@pytest.fixture
def train(ddp, smoke, tmp_path):
    """Start the run, or go on with it, to a step."""
    calls, compiler = tmp_path / "calls", tmp_path / "bin" / Path(COMPILER).name
    compiler.parent.mkdir()
    compiler.write_text(WATCHED.format(calls=calls, compiler=COMPILER))
    compiler.chmod(0o755)

    def start(steps):
        counts = tmp_path / f"counts-{steps}"
        counts.mkdir()
        calls.write_text("")
        settings = ("task.name=counted:Counted", "precision.compile=on", f"precision.compile_cache_dir={tmp_path / 'kept'}")
        words = [part for setting in (*settings, f"optim.max_steps={steps}") for part in ("--set", setting)]
        path = f"{compiler.parent}{os.pathsep}{os.environ['PATH']}"
        env = {"PYTHONPATH": str(HERE), "COUNTS": str(counts), "PATH": path}
        run = ddp(*smoke, *words, run_dir=tmp_path / "run", env=env)
        assert run.wait() == 0, run.output
        ranks = [json.loads((counts / f"rank-{rank}.json").read_text()) for rank in range(2)]
        sources = [word for line in calls.read_text().splitlines() for word in line.split() if word.endswith(".cpp")]
        return Start([rank["compiled"] for rank in ranks], [rank["kept"] for rank in ranks], sources)

    return start


@needs_compiler
def test_a_second_start_of_a_compiled_run_compiles_nothing(train, tmp_path):
    first = train(2)
    assert sum(first.compiled) > 0
    assert first.sources
    assert all(Path(source).is_relative_to(tmp_path / "kept") for source in first.sources)
    second = train(4)
    assert second.compiled == [0, 0]
    assert all(graphs > 0 for graphs in second.kept)
    assert second.sources == []
