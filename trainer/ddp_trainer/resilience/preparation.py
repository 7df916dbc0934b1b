"""Node 0's first look at its run directory: made ready for this start, or left as it is and the start refused, on all nodes alike."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial

from ddp_trainer.checkpoint.growth import watched
from ddp_trainer.checkpoint.manifest import Manifest
from ddp_trainer.checkpoint.mirror import Mirror
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.config import RunConfig
from ddp_trainer.errors import ConfigError, DdpError, PeerLostError
from ddp_trainer.resilience.admission import assert_admitted, assert_own
from ddp_trainer.resilience.chronicle import Chronicle
from ddp_trainer.resilience.fault import Fault
from ddp_trainer.resilience.judge import last_word
from ddp_trainer.resilience.preface import Preface
from ddp_trainer.resilience.rendezvous import GenerationBarrier
from ddp_trainer.resilience.restore import tell_of_bad

_log = logging.getLogger(__name__)

REFUSAL_SECONDS = 60.0
"""How long a refusal waits for nodes that are not there yet: they are told with those that are, or find no node 0."""


def prepare_or_refuse(config: RunConfig, chronicle: Chronicle, barrier: GenerationBarrier, preface: Preface) -> None:
    """Make the run directory ready, or end this start on all nodes with the same words. `preface` is what node 0 answers meanwhile.

    Raises:
        DdpError: as `prepare`; the other nodes were told, unless the same start may succeed later: for that they wait.
    """

    def gets_on() -> None:
        barrier.beat()
        preface.gets_on()

    try:
        prepare(config, chronicle, gets_on, preface.say)
    except DdpError as error:
        if not error.exit.retried:
            _refuse(barrier, error)
        raise


def prepare(
    config: RunConfig, chronicle: Chronicle, gets_on: Callable[[], None] = lambda: None, say: Callable[[str], None] = lambda _: None
) -> None:
    """A volume without a good checkpoint begins with what its second home has, unless the run begins anew.

    Here, not where rank 0 finds that none verifies: a download may take longer than ranks wait for each other. It may take longer than
    agents do, too, and so may hashing it, or what lies here: `gets_on` is called, on a thread of its own, as long as bytes come or are
    hashed, so that it can be said to those that wait, and `say` is told in a line what is done. Only fsync gives no sign of life.

    Raises:
        ConfigError: the run begins anew, and its second home holds another run's.
        DataError: what lies here, or there, is another run's, or must not be gone on with.
        DdpError: as `Mirror.fetch_newest`.
    """
    store = CheckpointStore(config.run_dir / "checkpoints", tell=partial(tell_of_bad, config.run_dir))
    with watched(store.root, gets_on, lambda: store.hashed_at):
        store.prepare()
        if (url := config.checkpoint.mirror_url) and not store.has_good():
            _fetch_newest(config, url, store, chronicle, say)
        assert_admitted(config, store, goes_on=chronicle.goes_on)


def _fetch_newest(config: RunConfig, url: str, store: CheckpointStore, chronicle: Chronicle, say: Callable[[str], None]) -> None:
    mirror = Mirror(url)
    if config.run.resume == "never" and not chronicle.goes_on:
        if not store.steps() and (newest := mirror.newest()) is not None:
            raise ConfigError(
                f"checkpoint.mirror_url {url} holds checkpoints (the newest: step {newest}) and run.resume is never: they would be mixed "
                f"up with the new run's; give it another URL, or resume from them with --set run.resume=auto"
            )
        return

    def admit(manifest: Manifest) -> None:
        assert_own(config, manifest, url)
        say(f"fetching the checkpoint of step {manifest.step} from its second home")
        _log.info("fetching the checkpoint of step %d, %.2f GB, from %s", manifest.step, manifest.total_bytes / 1e9, url)

    step = mirror.fetch_newest(store, admit)
    if step is not None:
        chronicle.look_at_disk()
        _log.info("the checkpoint of step %d was fetched from %s", step, url)


def _refuse(barrier: GenerationBarrier, error: DdpError) -> None:
    """End all nodes with the same words. They are met for it, since who comes late would else wait for node 0 as for a lost one."""
    with contextlib.suppress(PeerLostError):  # not all have come
        barrier.next_rendezvous(REFUSAL_SECONDS)
    barrier.close(last_word(error.exit, Fault(error.exit.cause, 0, None, error.exit.code, 0, str(error)), str(error)))
    barrier.farewell()
