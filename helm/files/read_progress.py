"""Print the progress of a run's first pod: `python read_progress.py POD [PORT] [SECONDS]`, in the pod of `helm test`.

It fails where the pod runs and does not answer. A pod has a name in DNS only while it runs: where there is none the run waits for a node
or an image, or has ended, and that is for `kubectl get pytorchjobs` to tell.
"""
# ruff: noqa: INP001  # one file, handed to a container

import http.client
import socket
import sys
import time

UNKNOWN = {socket.EAI_NONAME, socket.EAI_NODATA}
LIMIT_BYTES = 65536
PAUSE_SECONDS = 0.5


def look(pod: str, port: int = 9400, patience_seconds: int = 60) -> str:
    """What the pod says, or why there is nothing to ask; at most `patience_seconds` and one answer's 2 s after its start."""
    deadline = time.monotonic() + patience_seconds
    while True:
        client = http.client.HTTPConnection(pod, port, timeout=2)
        try:
            client.request("GET", "/progress")
            answer = client.getresponse()
            return f"{pod} answers with {answer.status}: {answer.read(LIMIT_BYTES).decode()}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, socket.gaierror) and error.errno in UNKNOWN:
                return f"{pod} does not run (yet, or any more), so there is nothing to ask; kubectl get pytorchjobs,pods tells which"
            if time.monotonic() > deadline:
                sys.exit(f"{pod} runs, but port {port} does not answer: {error}; see its log, and which NetworkPolicies select it")
        finally:
            client.close()
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    sys.stdout.write(look(sys.argv[1], *map(int, sys.argv[2:])) + "\n")
