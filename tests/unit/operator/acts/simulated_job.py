"""A cluster in memory with one job: Kubeflow's training operator, a scheduler, kubelets and a trainer, as far as `decide` can tell.

A step clock: `pass_time` moves it second by second, and nothing else does. The operator under test looks, decides, writes its status, then
acts; each of these can be left out, come late or be repeated.
"""

from dataclasses import dataclass, field, replace

from ddp_operator.api.trainingrun import JobRef, Policy, TrainingRunSpec, TrainingRunStatus
from ddp_operator.decide.decide import decide
from ddp_operator.decide.decision import DeletePod, ResumeJob, SuspendJob
from ddp_operator.decide.facts import JobFacts, PodFacts, ProgressFacts, ProgressLook, RunFacts, Termination

BEGIN = 1_750_000_000.0
START_SECONDS = 3
LEAVE_SECONDS = 2
GRACE_SECONDS = 30.0
STEPS_PER_CHECKPOINT = 10
USER = "kubectl-patch"
SHORT_BOUNDS = {"hung_after": "60s", "node_lost_after": "20s"}


@dataclass
class SimulatedJob:
    """The truth about the cluster. `status` is what the operator has written last."""

    workers: int = 2
    policy: dict = field(default_factory=dict)
    restart_policy: str = "ExitCode"
    queue: str = ""
    is_foreign: bool = False
    knows_managers: bool = True
    now: float = BEGIN
    has_room: bool = True
    training_operator_is_there: bool = True
    is_hung: bool = False
    is_node_0_durable: bool = True
    step: int = 0
    durable_step: int = 0
    reached_step: int = 0
    lost_steps: int = 0
    status: TrainingRunStatus = field(default_factory=TrainingRunStatus)
    resource_version: int = 1
    pods: dict = field(default_factory=dict)
    unheard_nodes: set = field(default_factory=set)
    unending_pods: set = field(default_factory=set)
    """Names of pods that do not leave when they are told to, on nodes that are well: a volume that does not answer."""
    restarts: dict = field(default_factory=dict)
    """What the trainer counts, over all that ever trained in this run directory."""
    events: list = field(default_factory=list)
    actions: list = field(default_factory=list)
    writes: int = 0
    made: int = 0
    progress: ProgressLook = field(default_factory=ProgressLook)
    job: JobFacts | None = None

    def __post_init__(self):
        self.spec = TrainingRunSpec(job_ref=JobRef(name="demo"), policy=Policy(**{**SHORT_BOUNDS, **self.policy}))
        self.job = self.job or self._new_job("job-1")

    def _new_job(self, uid):
        return JobFacts(
            name="demo",
            uid=uid,
            created_at=self.now,
            queue=self.queue,
            replicas={"Master": 1, "Worker": self.workers},
            restart_policy={"Master": self.restart_policy, "Worker": self.restart_policy},
        )

    # --- the world goes on

    def pass_time(self, seconds, *, operator=True, every_seconds=1):
        """Second by second: training operator, scheduler and kubelets, trainer; our operator each `every_seconds`, and at the end."""
        for second in range(int(seconds)):
            self.now += 1.0
            self._control()
            self._run_pods()
            self._train()
            self._scrape()
            if operator and ((second + 1) % every_seconds == 0 or second + 1 == int(seconds)):
                self.look_and_act()

    def pass_time_until_paused(self):
        """Until the operator has paused the job."""
        for _ in range(300):
            if self.job.suspend:
                return
            self.pass_time(1)
        raise AssertionError("the job was not paused within 300 s")

    def only_write_until(self, attribute):
        """Until the status has something in this field; the operator dies before each of its actions."""
        for _ in range(300):
            if getattr(self.status, attribute) is not None:
                return
            self.pass_time(1, operator=False)
            facts = self.facts()
            self.carry_out(facts, decide(facts, self.now), dies_after_write=True)
        raise AssertionError(f"nothing was written to {attribute} within 300 s")

    def _control(self):
        if self.job is None or not self.training_operator_is_there or self._is_over():
            return
        for name, pod in list(self.pods.items()):
            if self.job.suspend:
                self._tell_to_leave(name)
            elif pod.phase == "Failed" and not pod.deleted_at:
                if pod.ended and pod.ended.exit_code < 128:
                    self._end_job("Failed")
                    return
                self._tell_to_leave(name)
            elif pod.phase == "Succeeded" and pod.replica == "master-0":
                self._end_job("Succeeded")
                return
        if self.job.suspend:
            return
        for replica in ["master-0", *[f"worker-{i}" for i in range(self.job.replicas["Worker"])]]:
            if replica not in self.pods:
                self.made += 1
                self.pods[replica] = PodFacts(
                    name=f"demo-{replica}",
                    uid=f"{self.made:08d}-0000",
                    replica=replica,
                    created_at=self.now,
                    progress_port=0 if self.is_foreign else 9400,
                )

    def _is_over(self):
        return bool(self.job.conditions)

    def _end_job(self, condition):
        self.job = replace(self.job, conditions={condition: ("True", "", "", self.now)})

    def _tell_to_leave(self, name):
        if not self.pods[name].deleted_at:
            self.pods[name] = replace(self.pods[name], deleted_at=self.now + GRACE_SECONDS)

    def _run_pods(self):
        for name, pod in list(self.pods.items()):
            if pod.node in self.unheard_nodes:
                if pod.phase == "Running" and pod.is_ready:
                    self.pods[name] = replace(pod, is_ready=False, unready_since=self.now)
            elif pod.deleted_at and name not in self.unending_pods and self.now >= pod.deleted_at - GRACE_SECONDS + LEAVE_SECONDS:
                del self.pods[name]
            elif pod.phase == "Pending" and not pod.deleted_at and self.has_room and self.now >= pod.created_at + START_SECONDS:
                self.pods[name] = replace(
                    pod, phase="Running", node=f"node-of-{name}-{pod.uid[:8]}", started_at=self.now, is_ready=True, container_is_ready=True
                )

    def _gang_runs(self):
        return (
            self.job is not None
            and len(self.pods) == self.job.desired
            and all(
                p.phase == "Running" and not p.deleted_at and p.ended is None and p.node not in self.unheard_nodes
                for p in self.pods.values()
            )
        )

    def _train(self):
        gang = tuple(sorted(pod.uid + str(pod.restart_count) for pod in self.pods.values())) if self._gang_runs() else ()
        if gang != getattr(self, "_gang", ()):
            self._gang = gang
            if gang:
                self.is_hung = False
                self.lost_steps += self.step - self.durable_step
                self.step = self.durable_step
                self._formed_at = self.now
        if not gang or self.is_hung or self.now < self._formed_at + START_SECONDS:
            return
        self.step += 1
        if self.step % STEPS_PER_CHECKPOINT == 0:
            self.durable_step = self.step
        if not self.is_foreign:
            document = ProgressFacts(
                run="demo",
                attempt=1,
                phase="training",
                updated_at=self.now,
                step=self.step,
                total_steps=10_000,
                loss=1.0 / self.step,
                checkpoint_step=self.durable_step or None,
                checkpoint_saved_at=self.now,
                checkpoint_bytes=1000,
                lost_steps=self.lost_steps,
                samples_per_second=100.0,
                eta_seconds=3600.0,
                restarts=dict(self.restarts),
            )
            master = self.pods["master-0"]
            self.progress = ProgressLook(document=document, pod_uid=master.uid, heard_at=self.now, asked_at=self.now, answered_at=self.now)

    def _scrape(self):
        """Node 0's agent answers while its pod runs, also when the ranks hang; its document then stands still."""
        master = self.pods.get("master-0")
        if self.progress.document and master and master.phase == "Running" and master.node not in self.unheard_nodes:
            self.progress = replace(self.progress, asked_at=self.now, answered_at=self.now)

    # --- what users and faults do

    def crash(self, replica, code=160, message=""):
        """The container ends."""
        if replica in self.pods:
            ended = Termination(exit_code=code, message=message, finished_at=self.now)
            self.pods[replica] = replace(
                self.pods[replica], phase="Succeeded" if code == 0 else "Failed", ended=ended, is_ready=False, container_is_ready=False
            )

    def crash_in_place(self, replica, code=1):
        """Under OnFailure the kubelet starts it again in the same pod."""
        if replica in self.pods:
            pod = self.pods[replica]
            ended = Termination(exit_code=code, finished_at=self.now)
            self.pods[replica] = replace(pod, restart_count=pod.restart_count + 1, ended_before=ended, started_at=self.now)

    def evict(self, replica):
        if replica in self.pods:
            self.pods[replica] = replace(self.pods[replica], disruption="EvictionByEvictionAPI")
            self._tell_to_leave(replica)

    def delete_pod(self, replica):
        if replica in self.pods:
            self._tell_to_leave(replica)

    def lose_node(self, replica):
        if replica in self.pods and self.pods[replica].node:
            self.unheard_nodes.add(self.pods[replica].node)

    def delete_job_in_foreground(self):
        """It stays until its pods are gone, and nobody makes new ones."""
        self.job = replace(self.job, deleted_at=self.now, generation=self.job.generation + 1)
        self.training_operator_is_there = False
        for name in self.pods:
            self._tell_to_leave(name)

    def user_changes(self, **changes):
        """Somebody edits the job's spec; whoever sets `suspend` to another value owns the field then."""
        if "suspend" in changes and changes["suspend"] != self.job.suspend:
            changes["suspend_manager"] = USER if self.knows_managers else ""
        self.job = replace(self.job, generation=self.job.generation + 1, **changes)

    def new_job(self):
        """A chart upgrade: another object of the same run."""
        self.pods.clear()
        self.made += 1
        self.job = self._new_job(f"job-{self.made}-of-the-run")

    # --- our operator

    def facts(self):
        return RunFacts(
            namespace="default",
            name="demo",
            uid="run-1",
            generation=1,
            resource_version=str(self.resource_version),
            created_at=BEGIN,
            spec=self.spec,
            status=self.status,
            job=self.job,
            pods=tuple(self.pods[name] for name in sorted(self.pods)),
            progress=self.progress,
        )

    def look_and_act(self):
        return self.carry_out(self.facts(), decide(self.facts(), self.now))

    def carry_out(self, facts, decision, *, dies_after_write=False, dies_after_actions=0):
        """Write, act, tell. A conflict ends it before anything is done. `dies_after_actions` n > 0: only n actions are carried out."""
        if decision.status != facts.status:
            if facts.resource_version != str(self.resource_version):
                return decision
            self.status = TrainingRunStatus.model_validate_json(decision.status.model_dump_json(by_alias=True))
            assert self.status == decision.status
            self.resource_version += 1
            self.writes += 1
        if dies_after_write:
            return decision
        actions = decision.actions[:dies_after_actions] if dies_after_actions else decision.actions
        for action in actions:
            self._apply(action)
        self.actions.extend((self.now, action) for action in actions)
        self.events.extend((self.now, event) for event in decision.events)
        return decision

    def _apply(self, action):
        match action:
            case SuspendJob(uid=uid, generation=generation) | ResumeJob(uid=uid, generation=generation):
                wish = isinstance(action, SuspendJob)
                if self.job is not None and (self.job.uid, self.job.generation) == (uid, generation) and self.job.suspend != wish:
                    manager = "ddp-operator" if self.knows_managers else ""
                    self.job = replace(self.job, suspend=wish, generation=generation + 1, suspend_manager=manager)
            case DeletePod(uid=uid, grace_seconds=grace):
                for name, pod in list(self.pods.items()):
                    if pod.uid == uid and grace == 0:
                        del self.pods[name]
                    elif pod.uid == uid:
                        self._tell_to_leave(name)

    # --- what tests ask

    def told(self):
        return [event.reason.value for _, event in self.events]

    def done(self, kind):
        return [action for _, action in self.actions if isinstance(action, kind)]

    def ledger(self):
        return [(entry.cause.value, entry.action.value, entry.recovered_at is not None) for entry in self.status.ledger]
