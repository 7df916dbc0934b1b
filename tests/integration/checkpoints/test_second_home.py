"""A second home holds what was committed, whole or not at all, gives it back to an empty volume, and disturbs nothing when it fails."""

from __future__ import annotations

import json
import threading

import fsspec
import pytest
from small_checkpoints import IDENTITY, commit, edited, is_state_of

from ddp_trainer.checkpoint import manifest as manifest_module
from ddp_trainer.checkpoint import mirror as mirror_module
from ddp_trainer.checkpoint.manifest import MANIFEST_NAME
from ddp_trainer.checkpoint.mirror import Mirror
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.config import RunConfig
from ddp_trainer.errors import ConfigError, DataError, PeerLostError
from ddp_trainer.resilience.chronicle import LEDGER_FILE, Chronicle
from ddp_trainer.resilience.preparation import prepare as prepare_run
from ddp_trainer.telemetry.events import EVENTS_FILE, read_events

PATIENCE_SECONDS = 60


@pytest.fixture
def store(tmp_path):
    made = CheckpointStore(tmp_path / "volume" / "checkpoints", keep=2)
    made.prepare()
    return made


@pytest.fixture
def empty(tmp_path):
    """The volume of a replaced machine."""
    made = CheckpointStore(tmp_path / "replaced" / "checkpoints", keep=2)
    made.prepare()
    return made


def copy(mirror, store, *steps):
    """Commit, and wait for each copy."""
    for step in steps:
        commit(store, step)
        mirror.offer(store.folder(step))
        assert mirror.drain(PATIENCE_SECONDS)


def at(home):
    """The file system of a URL as anybody sees it, and the path. One client for all tests, slow to make; mirrors have their own."""
    return fsspec.core.url_to_fs(home, use_listings_cache=False)


def steps_in(home):
    files, root = at(home)
    return sorted(int(path.rstrip("/").rpartition("-")[2]) for path in files.ls(root, detail=False))


def test_what_was_committed_comes_back_to_an_empty_volume(home, store, empty):
    copy(Mirror(home), store, 1, 2)
    assert Mirror(home).fetch_newest(empty) == 2
    assert is_state_of(empty.load_newest(), 2)
    assert (empty.root / "latest").read_text() == "step-000000002\n"
    assert sorted(path.name for path in empty.root.iterdir()) == ["latest", "step-000000002"]
    for path in store.folder(2).iterdir():
        assert (empty.folder(2) / path.name).read_bytes() == path.read_bytes()


def test_retention_on_the_volume_removes_nothing_from_the_second_home(home, store):
    copy(Mirror(home), store, 1, 2, 3, 4, 5)
    assert store.steps() == [4, 5]
    assert steps_in(home) == [1, 2, 3, 4, 5]


def test_the_first_and_every_nth_after_it_are_copied(home, store):
    copy(Mirror(home, every=3), store, *range(10, 90, 10))
    assert steps_in(home) == [10, 40, 70]


def test_the_last_one_is_copied_whatever_its_number_and_says_so(home, store):
    mirror = Mirror(home, every=3)
    taken = []
    for step in (10, 20, 30):
        commit(store, step)
        taken.append(mirror.offer(store.folder(step), is_last=step == 30))
        assert mirror.drain(PATIENCE_SECONDS)
    assert taken == [True, False, True]
    assert steps_in(home) == [10, 30]


def test_a_checkpoint_that_is_replaced_while_it_is_opened_is_copied_as_one_not_as_a_mixture_of_two(home, store, empty, monkeypatch):
    commit(store, 2)
    real, looks = mirror_module.read_manifest, []

    def read_manifest(folder):
        if not looks:
            commit(store, 2, {"loss": 0.5})  # its evaluation has ended
        looks.append(folder)
        return real(folder)

    monkeypatch.setattr(mirror_module, "read_manifest", read_manifest)
    mirror = Mirror(home)
    mirror.offer(store.folder(2))
    assert mirror.drain(PATIENCE_SECONDS)
    assert len(looks) == 2
    assert mirror.fetch_newest(empty) == 2
    assert empty.load_newest().manifest.metrics == {"loss": 0.5}


@pytest.mark.parametrize(
    "damage", ["no manifest", "torn manifest", "data missing", "data changed", "a path out of the folder", "another version"]
)
def test_a_copy_that_is_not_whole_is_passed_over_for_an_older_one(home, store, empty, tmp_path, damage, caplog):
    copy(Mirror(home), store, 1, 2)
    files, root = at(home)
    manifest, data = f"{root}/step-000000002/{MANIFEST_NAME}", f"{root}/step-000000002/model.safetensors"
    written = files.cat_file(manifest)
    if damage == "no manifest":
        files.rm_file(manifest)
    elif damage == "torn manifest":
        files.pipe_file(manifest, files.cat_file(manifest)[:100])
    elif damage == "data missing":
        files.rm_file(data)
    elif damage == "data changed":
        content = bytearray(files.cat_file(data))
        content[-1] ^= 1
        files.pipe_file(data, bytes(content))
    elif damage == "another version":
        files.pipe_file(manifest, edited(written, format_version=9))
    else:
        entries = json.loads(written)["files"]
        files.pipe_file(manifest, edited(written, files=entries | {"../../../../outside": entries["state.json"]}))
    assert Mirror(home).fetch_newest(empty) == 1
    assert is_state_of(empty.load_newest(), 1)
    assert sorted(path.name for path in empty.root.iterdir()) == ["latest", "step-000000001"]
    assert "step-000000002 cannot be used" in caplog.text
    assert not list(tmp_path.rglob("outside"))


def test_a_place_where_nothing_was_copied_yet_has_nothing_and_says_nothing(home, empty, caplog):
    assert Mirror(home).fetch_newest(empty) is None
    assert not [record for record in caplog.records if record.name.startswith("ddp_trainer")]


@pytest.fixture
def withheld(monkeypatch):
    """Names in a second home that are listed, and not given, as by a network that is down."""
    names, real = [], Mirror._open

    def opened(self):
        files, root = real(self)
        give = type(files).get_file

        def get_file(path, target, **options):
            if any(name in path for name in names):
                raise ConnectionError("the network is down")
            return give(files, path, target, **options)

        files.get_file = get_file
        return files, root

    monkeypatch.setattr(Mirror, "_open", opened)
    return names


@pytest.mark.parametrize("part", ["step-", ".safetensors"])
def test_copies_that_are_listed_and_cannot_be_fetched_let_no_run_begin_anew(home, store, empty, withheld, part):
    copy(Mirror(home), store, 1, 2)
    withheld.append(part)
    with pytest.raises(PeerLostError, match=r"lists some but does not give one \(step-000000002: ConnectionError: the network is down\)"):
        Mirror(home).fetch_newest(empty)
    assert list(empty.root.iterdir()) == []
    withheld.clear()
    assert Mirror(home).fetch_newest(empty) == 2


def test_of_copies_of_which_some_can_be_fetched_the_newest_such_is_taken(home, store, empty, withheld, caplog):
    copy(Mirror(home), store, 1, 2)
    withheld.append("step-000000002")
    assert Mirror(home).fetch_newest(empty) == 1
    assert "step-000000002 cannot be used (ConnectionError: the network is down)" in caplog.text


def spoil(home, *steps):
    files, root = at(home)
    for step in steps:
        files.pipe_file(f"{root}/step-{step:09d}/model.safetensors", b"rubbish")


def test_where_no_copy_verifies_that_is_said_and_no_run_begins_anew(home, store, empty):
    copy(Mirror(home), store, 1, 2)
    spoil(home, 1, 2)
    with pytest.raises(DataError, match=r"none of those in its second home .* verifies \(step-000000002: model\.safetensors: 7 bytes, the"):
        Mirror(home).fetch_newest(empty)
    assert list(empty.root.iterdir()) == []


def test_a_good_copy_may_be_among_those_that_cannot_be_fetched_so_it_is_waited_for(home, store, empty, withheld):
    copy(Mirror(home), store, 1, 2)
    spoil(home, 2)
    withheld.append("step-000000001")
    with pytest.raises(PeerLostError, match="step-000000001: ConnectionError"):
        Mirror(home).fetch_newest(empty)


def test_where_every_copy_broke_off_nothing_was_ever_kept(home, store, empty):
    copy(Mirror(home), store, 1)
    files, root = at(home)
    files.rm_file(f"{root}/step-000000001/{MANIFEST_NAME}")
    assert Mirror(home).fetch_newest(empty) is None


@pytest.mark.parametrize("fails_at", ["ema.safetensors", "model.safetensors", "state.json", MANIFEST_NAME])
def test_a_copy_that_breaks_off_is_no_checkpoint_whatever_lay_there_before(home, store, empty, tmp_path, monkeypatch, caplog, fails_at):
    copy(Mirror(home), store, 1)
    other = CheckpointStore(tmp_path / "other")
    copy(Mirror(home), other, 2)
    again = CheckpointStore(tmp_path / "again")
    commit(again, 2, {"loss": 0.5})  # the same step of another attempt: other bytes under the same names
    real = mirror_module._upload

    def upload(files, content, target):
        if target.endswith(fails_at):
            raise OSError("the connection broke")
        real(files, content, target)

    monkeypatch.setattr(mirror_module, "_upload", upload)
    mirror = Mirror(home)
    mirror.offer(again.folder(2))
    assert mirror.drain(PATIENCE_SECONDS)
    assert "step-000000002 was not copied" in caplog.text
    assert Mirror(home).fetch_newest(empty) == 1
    monkeypatch.undo()


def test_the_same_step_of_a_later_attempt_replaces_the_earlier_ones_copy(home, store, empty, tmp_path):
    copy(Mirror(home), store, 2)
    again = CheckpointStore(tmp_path / "again")
    commit(again, 2, {"loss": 0.5})
    mirror = Mirror(home)
    mirror.offer(again.folder(2))
    assert mirror.drain(PATIENCE_SECONDS)
    assert mirror.fetch_newest(empty) == 2
    assert empty.load_newest().manifest.metrics == {"loss": 0.5}


def test_what_is_there_already_is_not_copied_again(home, store, monkeypatch):
    copy(Mirror(home), store, 1)
    monkeypatch.setattr(mirror_module, "_upload", lambda *_: pytest.fail("copied again"))
    mirror = Mirror(home)
    mirror.offer(store.folder(1))
    assert mirror.drain(PATIENCE_SECONDS)


@pytest.fixture
def gate(monkeypatch):
    """Holds copies in their first upload: (a copy has begun, let them go on)."""
    begun, go_on = threading.Event(), threading.Event()
    real = mirror_module._upload

    def upload(files, content, target):
        begun.set()
        assert go_on.wait(PATIENCE_SECONDS)
        real(files, content, target)

    monkeypatch.setattr(mirror_module, "_upload", upload)
    yield begun, go_on
    go_on.set()


def test_a_slow_second_home_delays_no_commit_and_gets_the_newest_next(home, store, empty, gate):
    begun, go_on = gate
    mirror = Mirror(home)
    for step in (1, 2, 3, 4, 5):  # meanwhile retention removes the folder that is being copied
        commit(store, step)
        mirror.offer(store.folder(step))
        assert begun.wait(PATIENCE_SECONDS)
    assert store.steps() == [4, 5]
    assert not mirror.drain(0)
    go_on.set()
    assert mirror.drain(PATIENCE_SECONDS)
    assert steps_in(home) == [1, 5]
    assert mirror.fetch_newest(empty) == 5
    store.prepare()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("s3://no-such-bucket/run", "bucket"),
        ("file:///proc/run", "proc"),
    ],
)
@pytest.mark.usefixtures("s3_environment")
def test_a_second_home_that_cannot_be_used_is_logged_and_ends_nothing(store, empty, caplog, url, word):
    mirror = Mirror(url)
    copy(mirror, store, 1, 2)
    assert caplog.text.count("was not copied") == 2
    assert word in caplog.text.lower()
    assert mirror.fetch_newest(empty) is None
    assert empty.steps() == []
    assert is_state_of(store.load_newest(), 2)


def test_an_unknown_kind_of_place_is_told_at_the_start(store, empty, caplog):
    mirror = Mirror("gopher://somewhere/run")
    copy(mirror, store, 1)
    assert "was not copied" in caplog.text
    with pytest.raises(ConfigError, match="mirror_url gopher://somewhere/run cannot be used"):
        mirror.fetch_newest(empty)


@pytest.mark.usefixtures("s3_environment")
def test_a_server_that_is_gone_ends_no_training_but_lets_none_begin_anew(store, empty, caplog, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # nobody listens there
    mirror = Mirror("s3://bucket/run")
    copy(mirror, store, 1)
    assert "step-000000001 was not copied to s3://bucket/run" in caplog.text
    with pytest.raises(PeerLostError, match="its second home s3://bucket/run cannot be read"):
        mirror.fetch_newest(empty)


def test_a_full_volume_is_an_error_of_its_own_and_gets_no_half_checkpoint(home, store, empty, monkeypatch):
    copy(Mirror(home), store, 1)
    monkeypatch.setattr(CheckpointStore, "adopt", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match=r"step-000000001 cannot be fetched into .*: No space left on device; free space there"):
        Mirror(home).fetch_newest(empty)
    assert list(empty.root.iterdir()) == []


# --- what a start makes of it --------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(home, tmp_path, monkeypatch):
    """A start's first look at the run directory, with this `run.resume`; the run's store. It would train what was committed."""
    monkeypatch.setattr(RunConfig, "identity", lambda _: IDENTITY)

    def prepare(resume="auto"):
        values = {"run.root": str(tmp_path), "run.name": "started", "run.resume": resume, "checkpoint.mirror_url": home}
        run_dir = tmp_path / "started"
        chronicle = Chronicle("started", 0, 1, run_dir / LEDGER_FILE, resume)
        chronicle.recall()
        prepare_run(RunConfig().with_values(values), chronicle)
        return CheckpointStore(tmp_path / "started" / "checkpoints")

    return prepare


def damage(store):
    for step in store.steps():
        (store.folder(step) / "model.safetensors").write_bytes(b"rubbish")


def interrupted(run_dir, resume):
    """The ledger of a run whose ranks have trained, and whose agent was lost."""
    run_dir.mkdir(parents=True, exist_ok=True)
    chronicle = Chronicle("started", 0, 1, run_dir / LEDGER_FILE, resume)
    chronicle.begun_with = resume
    chronicle.save()


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(Mirror, "_fetch", lambda *_: pytest.fail("something was downloaded"))


@pytest.mark.usefixtures("no_download")
def test_a_run_that_begins_anew_refuses_a_second_home_that_holds_another_runs_checkpoints(home, store, start, tmp_path):
    copy(Mirror(home), store, 1, 2)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"checkpoint\.mirror_url .* holds checkpoints \(the newest: step 2\) and run\.resume is never"
        ):
            start("never")
    assert list((tmp_path / "started" / "checkpoints").iterdir()) == []


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize("left", ["nothing", "half a copy"])
def test_a_run_that_begins_anew_starts_where_the_second_home_holds_no_checkpoint(home, store, start, left):
    if left == "half a copy":
        copy(Mirror(home), store, 1)
        files, root = at(home)
        files.rm_file(f"{root}/step-000000001/{MANIFEST_NAME}")
    assert start("never").steps() == []


def test_an_interrupted_run_that_began_anew_goes_on_with_its_own_copies(home, store, start, tmp_path):
    copy(Mirror(home), store, 1, 2)
    interrupted(tmp_path / "started", "never")
    assert is_state_of(start("never").load_newest(), 2)


@pytest.mark.usefixtures("no_download")
def test_never_with_an_interrupted_run_of_another_setting_is_a_new_run(home, store, start, tmp_path):
    copy(Mirror(home), store, 1)
    interrupted(tmp_path / "started", "auto")
    with pytest.raises(ConfigError, match=r"run\.resume is never"):
        start("never")


def test_a_second_home_of_another_run_is_refused_and_nothing_of_it_is_taken(home, store, start, tmp_path, monkeypatch):
    copy(Mirror(home), store, 1)
    monkeypatch.setattr(RunConfig, "identity", lambda _: {**IDENTITY, "seed": 1})
    for _ in range(2):
        with pytest.raises(DataError, match=r"holds a run of another configuration \(seed: 0 -> 1\); give another checkpoint\.mirror_url"):
            start()
    assert list((tmp_path / "started" / "checkpoints").iterdir()) == []
    monkeypatch.setattr(RunConfig, "identity", lambda _: IDENTITY)
    assert start().steps() == [1]


@pytest.mark.usefixtures("s3_environment")
def test_a_run_that_begins_anew_waits_for_a_second_home_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    values = {"run.root": str(tmp_path), "run.resume": "never", "checkpoint.mirror_url": "s3://bucket/run"}
    with pytest.raises(PeerLostError, match="its second home s3://bucket/run cannot be read"):
        prepare_run(RunConfig().with_values(values), Chronicle("run", 0, 1, None, "never"))


@pytest.mark.parametrize("copied", [(1,), (1, 2), (1, 2, 3)])
def test_where_every_checkpoint_on_the_volume_is_bad_the_newest_good_copy_is_taken(home, store, start, tmp_path, copied):
    copy(Mirror(home), store, *copied)
    here = CheckpointStore(tmp_path / "started" / "checkpoints")
    for step in (2, 3):
        commit(here, step)
    damage(here)
    loaded = start().load_newest()
    assert is_state_of(loaded, copied[-1])
    told = [event["step"] for event in read_events(tmp_path / "started" / EVENTS_FILE) if event["kind"] == "quarantine"]
    assert told == [step for step in (2, 3) if step == copied[-1]], "a start tells of what made way; the others are rank 0's to tell of"


@pytest.mark.usefixtures("no_download")
def test_a_good_checkpoint_on_the_volume_is_enough_and_the_second_home_is_not_asked(home, store, start, tmp_path, monkeypatch):
    copy(Mirror(home), store, 5)
    monkeypatch.setattr(Mirror, "_open", lambda _: pytest.fail("asked"))
    here = CheckpointStore(tmp_path / "started" / "checkpoints")
    commit(here, 1)
    commit(here, 2)
    (here.folder(2) / "model.safetensors").write_bytes(b"rubbish")
    assert start().steps() == [1, 2]


def test_bad_checkpoints_and_an_empty_second_home_are_left_to_whoever_loads_them(start, tmp_path):
    here = CheckpointStore(tmp_path / "started" / "checkpoints")
    commit(here, 2)
    damage(here)
    with pytest.raises(DataError, match="none of the 1 checkpoints"):
        start().load_newest()


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize("why", ["another version", "a volume that cannot be read"])
def test_checkpoints_of_which_nothing_is_known_are_not_taken_for_bad_ones(home, store, start, tmp_path, monkeypatch, why):
    copy(Mirror(home), store, 5)
    here = CheckpointStore(tmp_path / "started" / "checkpoints")
    commit(here, 2)
    if why == "another version":
        manifest = here.folder(2) / MANIFEST_NAME
        manifest.write_bytes(edited(manifest.read_bytes(), format_version=9))
    else:
        monkeypatch.setattr(manifest_module, "sha256_of", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    assert start().steps() == [2]
