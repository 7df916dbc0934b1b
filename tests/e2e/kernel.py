"""What a node's kernel does to the processes of a pod, asked for beside the container engine: it freezes them, or kills some of them."""

from __future__ import annotations

from typing import Any

from cluster import CaseError, in_node

FREEZE = """for d in $(find /sys/fs/cgroup -type d -name '*{uid}*'); do
if [ -e $d/cgroup.freeze ]; then echo 1 > $d/cgroup.freeze && echo $d; fi; done"""
KILL = """for d in $(find /sys/fs/cgroup -type d -name '*{uid}*'); do find $d -name cgroup.procs -exec cat {{}} +; done | sort -u |
while read p; do if tr '\\0' ' ' < /proc/$p/cmdline | grep -q '{words}'{only}; then kill -9 $p && echo $p; fi; done"""
FIRST = " && grep -q '^NSpid:.*[[:space:]]1$' /proc/$p/status"


def freeze(pod: dict[str, Any]) -> None:
    """All of it: process 1 of a container does not hear a SIGSTOP from inside."""
    _do(FREEZE, pod, "it could not be frozen")


def kill(pod: dict[str, Any], words: str) -> None:
    """SIGKILL to its processes with these words in their command: a pod that is deleted by force is still told to end."""
    _do(KILL, pod, f"it has no process {words}", words=words, only="")


def kill_first(pod: dict[str, Any], words: str) -> None:
    """SIGKILL to its container's process 1, with these words in its command: the kernel ends all others with it."""
    _do(KILL, pod, f"it has no process 1 {words}", words=words, only=FIRST)


def _do(script: str, pod: dict[str, Any], trouble: str, **more: str) -> None:
    uid = pod["metadata"]["uid"].replace("-", "_")
    if not in_node(pod["spec"]["nodeName"], script.format(uid=uid, **more)).strip():
        raise CaseError(f"pod {pod['metadata']['name']}: {trouble}")
