"""A cluster of a few answers, and TrainingRuns as the API server has them."""

from ddp_operator.observe.api import ApiError

RUNS = "/apis/ddp-operator.io/v1alpha1"
HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]x[/]"


class Cluster:
    """Answers each path from a dictionary; an exception there is raised, a list gives one answer a call."""

    def __init__(self, answers):
        self.answers, self.asked, self.is_closed = answers, [], False

    async def request(self, method, path, *, query=None, **_):
        self.asked.append((method, path, dict(query or {})))
        answer = self.answers.get(path, ApiError(404, "not found"))
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self):
        self.is_closed = True


def listed(*items, more=""):
    return {"items": list(items), "metadata": {"continue": more}}


def body(name="resnet", namespace="team-a", **status):
    return {
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": "2026-09-21T12:00:00Z"},
        "spec": {"jobRef": {"name": f"{name}-1"}, "checkpoint": {"claimName": "resnet-checkpoints"}},
        "status": status,
    }


FULL = body(
    phase="Restarting",
    reason="OOMKilled",
    message="worker-0 was killed above its memory limit",
    phaseSince="2026-09-21T13:00:00Z",
    progress={"step": 1200, "totalSteps": 9000, "epoch": "0.5/4", "loss": "0.91", "samplesPerSecond": "5,214", "eta": "31m"},
    checkpoint={"step": 1100, "savedAt": "2026-09-21T12:58:00Z", "bytes": 1, "verified": True},
    restarts={"total": 2},
    timing={"startedAt": "2026-09-21T12:01:00Z", "runningAt": "2026-09-21T12:02:00Z"},
    conditions=[{"type": "Ready", "status": "False", "reason": "Restarting", "lastTransitionTime": "2026-09-21T13:00:01Z", "message": ""}],
    ledger=[
        {"at": "2026-09-21T12:30:00Z", "cause": "NodeLost", "pod": "resnet-1-worker-2", "node": "n1", "step": 500, "durableStep": 480,
         "recoveredAt": "2026-09-21T12:33:00Z", "lostSteps": 7, "action": "FreePods", "message": "n1 does not answer"},
        {"at": "2026-09-21T13:00:00Z", "cause": "OOMKilled", "pod": "resnet-1-worker-0", "exitCode": 137, "step": 1200,
         "durableStep": 1100},
    ],
)  # fmt: skip
EVENTS = listed(
    {"lastTimestamp": "2026-09-21T12:45:00Z", "reason": "VolumeFilling", "type": "Warning", "message": "88 % used", "count": 3},
    {"lastTimestamp": None, "reason": "Odd"},
)
