"""Jobs that ask to be tracked and have no TrainingRun: each is adopted after a moment, and tried again for as long as that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ddp_operator.act.adopt import NameTakenError, adopt
from ddp_operator.api.words import EventReason
from ddp_operator.backoff import Backoff
from ddp_operator.decide.decision import Event
from ddp_operator.decide.facts import JobFacts, RunFacts
from ddp_operator.observe.api import Api, ApiError
from ddp_operator.observe.world import World

ADOPT_AFTER_SECONDS: Final = 2.0
"""A chart makes the job first and its TrainingRun a moment later: adopting in between would take the name."""
BACKOFF: Final = Backoff(30.0)

_log = logging.getLogger(__name__)


class Orphans:
    """Who waits to be adopted. A job is not adopted twice at once, and only by the leader."""

    def __init__(
        self,
        world: World,
        api: Api,
        is_leader: Callable[[], bool],
        tell: Callable[[RunFacts, Event], bool],
        monotonic: Callable[[], float],
        write_seconds: float,
    ) -> None:
        self._world = world
        self._api = api
        self._is_leader = is_leader
        self._tell = tell
        self._monotonic = monotonic
        self._write_seconds = write_seconds
        self._waiting: dict[tuple[str, str], _Orphan] = {}
        """By namespace and uid of the job."""
        self.adopted = 0

    def tasks(self) -> list[asyncio.Task[None]]:
        """Adoptions under way."""
        return [orphan.task for orphan in self._waiting.values() if orphan.task]

    def look(self) -> None:
        """Begin to adopt those whose time has come, forget those that have found a run. Never blocks."""
        now = self._monotonic()
        found = {(namespace, job.uid): job for namespace, job in self._world.unadopted()}
        for key in [key for key, orphan in self._waiting.items() if key not in found and orphan.task is None]:
            del self._waiting[key]
        for key, job in found.items():
            orphan = self._waiting.setdefault(key, _Orphan(now + ADOPT_AFTER_SECONDS))
            if orphan.task is None and orphan.due_at <= now:
                orphan.task = asyncio.create_task(self._adopt(key[0], job, orphan), name=f"adopt {key[0]}/{job.name}")

    async def _adopt(self, namespace: str, job: JobFacts, orphan: _Orphan) -> None:
        about = {"namespace": namespace, "run": job.name}
        try:
            if not self._is_leader():
                return
            body = await adopt(self._api, namespace, job, timeout_seconds=self._write_seconds)
            self.adopted += 1
            self._world.put_run(body)
            run = self._world.facts_of(namespace, body.get("metadata", {}).get("name", ""))
            _log.info("Adopted PyTorchJob %s.", job.name, extra=about)
            if run is not None:
                self._tell(run, Event(EventReason.ADOPTED, f"PyTorchJob {job.name} is labelled to be tracked, and is looked after now."))
        except (NameTakenError, ApiError) as error:
            if str(error) != orphan.sentence:
                orphan.sentence = str(error)
                _log.warning("PyTorchJob %s was not adopted: %s", job.name, error, extra=about)
        except Exception:  # as in a round: one job's trouble is not the others'
            _log.exception("PyTorchJob %s could not be adopted; please report this.", job.name, extra=about)
        finally:
            orphan.attempts += 1
            orphan.due_at = self._monotonic() + BACKOFF.after(orphan.attempts + 2)
            orphan.task = None


@dataclass(slots=True)
class _Orphan:
    due_at: float
    attempts: int = 0
    sentence: str = ""
    task: asyncio.Task[None] | None = None
