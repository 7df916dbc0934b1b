"""The world as it was last seen: all facts of all runs in memory, and which runs are to be looked at again.

Watchers put in what they see, in any order, late, doubled or stale, and the newest version of each object wins (`shelf`). For one event
loop: nothing here awaits but `wait_dirty`, so nothing needs a lock.

Absence says nothing before a complete list: `facts_of(...).pods_are_known` is False until the pods, jobs and claims of the namespace were
all listed once, and `unadopted` is empty until its runs were.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, KeysView
from dataclasses import replace
from typing import Any, Literal

from ddp_operator.decide.facts import ClaimFacts, JobFacts, PodFacts, ProgressLook, RunFacts
from ddp_operator.observe import news, slim
from ddp_operator.observe.claim_users import ClaimUsers
from ddp_operator.observe.newest import Newest
from ddp_operator.observe.packed import PackedRun
from ddp_operator.observe.shelf import Key, Shelf
from ddp_operator.observe.slim import Seen

Kind = Literal["run", "job", "claim", "pod"]

log = logging.getLogger(__name__)


class World:
    """Everything that is known of the cluster. `namespaces` are those that lists are made of; none: the whole cluster at once."""

    def __init__(self, namespaces: Collection[str] = ()) -> None:
        self._namespaces = tuple(namespaces)
        self._runs = Shelf[PackedRun]("TrainingRun", lambda run: run.essence)
        self._jobs = Shelf[JobFacts]("PyTorchJob", lambda facts: replace(facts, resource_version=""))
        self._claims = Shelf[ClaimFacts]("PersistentVolumeClaim")
        self._pods = Shelf[tuple[str, PodFacts]]("Pod")
        self._shelves: dict[Kind, Shelf[Any]] = {"run": self._runs, "job": self._jobs, "claim": self._claims, "pod": self._pods}
        self._looks: dict[Key, ProgressLook] = {}
        self.asked_runs = 0
        """How many runs have a node 0 that is asked: what everybody's pace depends on."""
        self.asked, self.answered = Newest(), Newest()  # when runs were, and have; moved by who measures a jump of the clock
        self._pods_of_job: dict[Key, set[str]] = {}
        self._runs_of_job: dict[Key, set[str]] = {}
        self._claim_users = ClaimUsers()
        self._dirty: dict[Key, None] = {}
        self._moved: dict[Key, None] = {}
        self._gathering: dict[Key, None] = {}
        self._changed = asyncio.Event()

    # --- what watchers put in; bodies are raw JSON

    def put_run(self, body: Any, *, is_renewal: bool = False) -> None:
        """A TrainingRun as just seen, or as a write has just returned it: `is_renewal` if that wrote mere numbers, which is no news."""
        read = None if self._is_known("run", body) else slim.run(body)
        if read is None:
            return
        seen = Seen(read.namespace, read.name, read.uid, read.version, PackedRun.of(read.facts), read.note)
        key = (seen.namespace, seen.name)
        before = self._runs.get(key)
        if not self._runs.put(seen):
            return
        if seen.note and (before is None or before.note != seen.note):
            log.warning("TrainingRun %s/%s: %s", *key, seen.note)
        if before is not None:
            _discard(self._runs_of_job, before.facts.job, seen.name)
            if before.uid != seen.uid:
                self._looks.pop(key, None)
        self._runs_of_job.setdefault(seen.facts.job, set()).add(seen.name)
        self._link_claims(key, seen.facts)
        if not is_renewal:
            self._mark(key)
        if before is None or _rank(before) != _rank(seen):
            for job in {seen.facts.job} | ({before.facts.job} if before else set()):
                self._mark_rivals(job, key)

    def put_job(self, body: Any) -> None:
        """A PyTorchJob."""
        seen = None if self._is_known("job", body) else slim.job(body)
        if seen is not None and self._jobs.put(seen):
            key = (seen.namespace, seen.name)
            self._touch_job(key)
            if self._wants_adoption(key, seen.facts):
                self._changed.set()

    def put_claim(self, body: Any) -> None:
        """A PersistentVolumeClaim."""
        seen = None if self._is_known("claim", body) else slim.claim(body)
        if seen is not None and self._claims.put(seen):
            self._touch_claim((seen.namespace, seen.name))

    def put_pod(self, namespace: str, job: str, pod: PodFacts, version: int = 0) -> None:
        """A pod of a job; `version` is its resourceVersion, 0: not known."""
        before = self._pods.get((namespace, pod.name))
        if not self._pods.put(Seen(namespace, pod.name, pod.uid, version, (job, pod))):
            return
        if before is not None and before.facts[0] != job:
            self._forget("pod", before)  # it was labelled anew
        self._pods_of_job.setdefault((namespace, job), set()).add(pod.name)
        self._touch_job((namespace, job))
        if self.is_listed("pod", namespace):  # the first list is no change
            self._gathering.update(((namespace, run), None) for run in self._runs_of_job.get((namespace, job), ()))

    def drop_run(self, namespace: str, name: str, uid: str = "") -> None:
        """It was deleted. With `uid`, only if that object is the one known: a late DELETED must not drop its successor."""
        self._forget("run", self._runs.drop((namespace, name), uid))

    def drop_job(self, namespace: str, name: str, uid: str = "") -> None:
        """Like `drop_run`."""
        self._forget("job", self._jobs.drop((namespace, name), uid))

    def drop_claim(self, namespace: str, name: str, uid: str = "") -> None:
        """Like `drop_run`."""
        self._forget("claim", self._claims.drop((namespace, name), uid))

    def drop_pod(self, namespace: str, name: str, uid: str = "") -> None:
        """Like `drop_run`."""
        self._forget("pod", self._pods.drop((namespace, name), uid))

    def put(self, kind: Kind, body: Any) -> Key | None:
        """An object of any kind by its raw body: its namespace and name, None if it is none of ours."""
        identity = slim.identity(body)
        if identity is None:
            return None
        namespace, name, _, version = identity
        if kind != "pod":
            {"run": self.put_run, "job": self.put_job, "claim": self.put_claim}[kind](body)
        elif not self._is_known(kind, body):
            if (found := slim.pod(body)) is None:
                return None
            self.put_pod(namespace, found[0], found[1].facts, version)
        return namespace, name

    def replace(self, kind: Kind, namespaces: Collection[str], bodies: Iterable[Any], version: int = 0) -> None:
        """A complete list: put all of `bodies`; what is known of those namespaces (none named: of all) and not among them is gone.

        `version` is the list's resourceVersion: what is newer than the list cannot be missing in it, and stays.
        """
        self.retain(kind, namespaces, {key for body in bodies if (key := self.put(kind, body)) is not None}, version)

    def retain(self, kind: Kind, namespaces: Collection[str], names: Collection[Key], version: int = 0) -> None:
        """The second half of `replace`, for a list that was put page by page: only `names` exist."""
        scope, shelf = frozenset(namespaces), self._shelves[kind]
        for seen in shelf.missing(scope, names, version):
            self._forget(kind, seen)
        news = shelf.note_listed(scope)
        if not news:
            return
        for key in self._runs.keys():  # noqa: SIM118  a shelf is no dict
            if "" in news or key[0] in news:
                self._mark(key)
        self._changed.set()  # jobs may wait to be adopted from now on

    # --- what the loop and the pages take out

    def names(self) -> list[Key]:
        """All TrainingRuns, sorted."""
        return sorted(self._runs.keys())

    def facts_of(self, namespace: str, name: str) -> RunFacts | None:
        """All that is known of a run; None: there is no such run (any more)."""
        seen = self._runs.get((namespace, name))
        if seen is None:
            return None
        job = self._jobs.get(seen.facts.job)
        claims = (self._claims.get((namespace, claim)) for claim in self._claim_users.claims_of((namespace, name)))
        return replace(
            seen.facts.unpacked(),
            job=job.facts if job else None,
            pods=self._pods_in_order(seen.facts.job, job.uid if job else ""),
            claims=tuple(replace(claim.facts, used_by=self._claim_users.named((namespace, claim.name))) for claim in claims if claim),
            progress=self.look_of(namespace, name),
            others_asked_at=self.asked.of_others((namespace, name)),
            others_answered_at=self.answered.of_others((namespace, name)),
            # a memory that cannot be read must not be written over, nor acted without: to be blind is what leaves a run alone
            pods_are_known=not seen.facts.bare.memory_is_unreadable
            and all(self.is_listed(kind, namespace) for kind in ("pod", "job", "claim")),
        )

    def acts(self, namespace: str, name: str) -> bool:
        """Whether this run is the one that acts on its job; of several that name one job, the others only look.

        One that somebody made goes before an adopted one, then the oldest, then the first by name; one that is being deleted goes last.
        """
        run = self._runs.get((namespace, name))
        if run is None:
            return False
        named = (self._runs.get((namespace, other)) for other in self._runs_of_job.get(run.facts.job, ()))
        bare = [other.facts.bare for other in named if other]
        first = min(bare, key=lambda one: (one.deleted_at > 0, one.is_adopted, one.created_at or float("inf"), one.name), default=None)
        return first is not None and first.name == name

    def unadopted(self) -> list[tuple[str, JobFacts]]:
        """(namespace, job) of each job that asks to be tracked, is not being deleted, and that no TrainingRun names, in order."""
        return [(key[0], seen.facts) for key, seen in sorted(self._jobs.items()) if self._wants_adoption(key, seen.facts)]

    def is_complete(self) -> bool:
        """Whether every kind was listed at least once, everywhere that lists are made of."""
        return all(shelf.is_listed(namespace) for shelf in self._shelves.values() for namespace in self._namespaces or ("",))

    def is_listed(self, kind: Kind, namespace: str) -> bool:
        """Whether a complete list of that kind has been seen there ("": in the whole cluster)."""
        return self._shelves[kind].is_listed(namespace)

    def node_zero(self, namespace: str, name: str) -> PodFacts | None:
        """The pod whose agent can tell a run's progress now: its container runs, and the job is neither suspended nor finished."""
        seen = self._runs.get((namespace, name))
        job = self._jobs.get(seen.facts.job) if seen else None
        if job is None or job.facts.suspend or any(job.facts.conditions.get(end, ("",))[0] == "True" for end in ("Succeeded", "Failed")):
            return None
        wanted = "master-0" if job.facts.has_master else "worker-0"
        for pod in self._pods_in_order((namespace, job.name), job.uid):
            if pod.replica == wanted:
                is_up = pod.phase == "Running" and pod.started_at > 0 and pod.ended is None
                return pod if is_up and pod.ip and pod.progress_port else None
        return None

    def look_of(self, namespace: str, name: str) -> ProgressLook:
        """The last look at a run's progress."""
        return self._looks.get((namespace, name), ProgressLook())

    def put_progress(self, namespace: str, name: str, look: ProgressLook) -> None:
        """The last look at a run's progress; ignored if there is no such run any more."""
        key = (namespace, name)
        run = self._runs.get(key)
        if run is None:
            return
        before = self._looks.get(key, ProgressLook())
        self._looks[key] = look
        self.asked.note(key, look.asked_at)
        self.answered.note(key, look.answered_at)
        if news.is_news(before, look):
            self._mark(key)
        elif news.has_moved(before, look):
            if run.facts.awaits_news:
                self._mark(key)
            else:
                self._moved.setdefault(key)

    def orphaned_claims(self) -> list[tuple[str, ClaimFacts]]:
        """Namespace and claim: made by a chart for a run, and neither a run nor a job uses it. They hold checkpoints, and cost money."""
        mounted = {(key[0], claim) for key, job in self._jobs.items() for claim in job.facts.claims}
        return [
            (key[0], seen.facts)
            for key, seen in sorted(self._claims.items())
            if seen.facts.run and not seen.facts.deleted_at and key not in self._claim_users and key not in mounted
        ]

    def take_dirty(self) -> KeysView[Key]:
        """The runs that something has changed for since the last call, deleted ones too, in the order of the first change. A set."""
        dirty, self._dirty = self._dirty, {}
        self._changed.clear()
        return dirty.keys()

    def take_moved(self) -> KeysView[Key]:
        """The runs of which nothing but numbers of the progress has changed since the last call: they may wait, and wake nobody."""
        moved, self._moved = self._moved, {}
        return moved.keys()

    def take_gathering(self) -> KeysView[Key]:
        """The runs of which pods have come or changed since the last call: what their node 0 says now is worth more than usual."""
        gathering, self._gathering = self._gathering, {}
        return gathering.keys()

    async def wait_dirty(self, timeout_seconds: float) -> bool:
        """Wait until some run is dirty, or a job waits to be adopted; False: the time is over."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _is_known(self, kind: Kind, body: Any) -> bool:
        """Whether just this version is known: sweeps, and watches after writes, bring the same again, which need not even be read."""
        identity = slim.identity(body)
        before = self._shelves[kind].get(identity[:2]) if identity else None
        return before is not None and identity is not None and before.uid == identity[2] and before.version == identity[3] > 0

    # --- who concerns whom

    def _forget(self, kind: Kind, gone: Seen[Any] | None) -> None:
        """Take what was just dropped out of the indexes, and mark whom it concerns."""
        if gone is None:
            return
        key = (gone.namespace, gone.name)
        if kind == "job":
            self._touch_job(key)
        elif kind == "claim":
            self._touch_claim(key)
        elif kind == "pod":
            job = (gone.namespace, gone.facts[0])
            _discard(self._pods_of_job, job, gone.name)
            self._touch_job(job)
        else:
            self._looks.pop(key, None)
            _discard(self._runs_of_job, gone.facts.job, gone.name)
            self._link_claims(key, None)
            self._mark(key)
            self._mark_rivals(gone.facts.job, key)

    def _mark(self, key: Key) -> None:
        self._dirty.setdefault(key)
        self._changed.set()

    def _mark_rivals(self, job: Key, key: Key) -> None:
        """The other runs that name this job: who of them acts may be another now."""
        for name in sorted(self._runs_of_job.get(job, set()) - {key[1]}):
            self._mark((job[0], name))

    def _touch_job(self, job: Key) -> None:
        """The job, or one of its pods, changed."""
        for name in sorted(self._runs_of_job.get(job, ())):
            if run := self._runs.get((job[0], name)):
                self._link_claims((job[0], name), run.facts)
            self._mark((job[0], name))

    def _touch_claim(self, key: Key) -> None:
        for run in self._claim_users.runs_of(key):
            self._mark(run)

    def _link_claims(self, key: Key, run: PackedRun | None) -> None:
        """A run uses the claims that its spec names or its job mounts; None: it is gone."""
        job = self._jobs.get(run.job) if run else None
        named = (run.claim,) if run and run.claim else ()
        for claim in self._claim_users.link(key, tuple(dict.fromkeys(named + (job.facts.claims if job else ())))):
            self._touch_claim(claim)  # the others' `used_by`

    def _pods_in_order(self, job: Key, job_uid: str) -> tuple[PodFacts, ...]:
        """Masters before workers, by index. Not those of a job that had the same name before: its end is not this job's."""
        named = [seen.facts[1] for name in self._pods_of_job.get(job, ()) if (seen := self._pods.get((job[0], name)))]
        pods = [pod for pod in named if not job_uid or not pod.owner_uid or pod.owner_uid == job_uid]
        return tuple(sorted(pods, key=lambda pod: (pod.replica.rstrip("0123456789"), len(pod.replica), pod.replica, pod.name)))

    def _wants_adoption(self, key: Key, job: JobFacts) -> bool:
        return job.is_tracked and not job.deleted_at and not self._runs_of_job.get(key) and self._runs.is_listed(key[0])


def _rank(run: Seen[PackedRun]) -> tuple[object, ...]:
    """What decides who of several runs acts on a job."""
    return run.uid, run.facts.job, run.facts.bare.is_adopted, run.facts.bare.deleted_at > 0


def _discard(index: dict[Key, set[str]], key: Key, name: str) -> None:
    """Take a name out of an index, and the row with its last name."""
    names = index.get(key)
    if names is not None:
        names.discard(name)
        if not names:
            del index[key]
