"""Scripts that run inside pods of the trainer's image, by `kubectl exec POD -- python -c`. Each prints JSON, or a line per thing."""

FOLLOW = r"""
import json, sys, time
folder, last, offset, rest = sys.argv[1], None, 0, b""
while True:
    try:
        with open(folder + "/progress.json") as file:
            p = json.load(file)
        seen = [p["attempt"], p["step"], p["phase"], p["world_size"], (p["checkpoint"] or {}).get("step", -1)]
    except (OSError, ValueError, KeyError, TypeError):
        seen = None
    if seen and seen != last:
        print(json.dumps({"seen": [time.time(), *seen]}), flush=True)
        last = seen
    try:
        with open(folder + "/events.jsonl", "rb") as file:
            file.seek(offset)
            new = file.read()
    except OSError:
        new = b""
    offset += len(new)
    *lines, rest = (rest + new).split(b"\n")
    for line in lines:
        try:
            print(json.dumps({"event": json.loads(line)}), flush=True)
        except ValueError:
            pass  # torn by a writer that was killed
    time.sleep(0.1)
"""
"""In the reader, with the run directory: a line for each change of progress.json and for each event, from the first one on."""

KILL_RANK = """
import os, pathlib, signal, time
ranks = []
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if (entry / "comm").read_text().startswith("ddp-rank-"):
            ranks.append(int(entry.name))
    except OSError:
        pass  # ended meanwhile
now = time.time()
os.kill(min(ranks), signal.SIGKILL)
print(now)
"""
"""In a trainer's pod: ranks are known by their names, since the master's writer is a grandchild of process 1 too. Prints when."""

LISTENING = """
import json
ports = set()
for name in ("tcp", "tcp6"):
    try:
        lines = open("/proc/net/" + name).read().splitlines()[1:]
    except OSError:
        continue
    for words in map(str.split, lines):
        address, port = words[1].split(":")
        if words[3] == "0A" and not (address.endswith("0100007F") or address == "0" * 24 + "01000000"):
            ports.add(int(port, 16))
print(json.dumps(sorted(ports)))
"""
"""In a trainer's pod: the TCP ports that listen to more than the loopback."""

REACH = """
import json, socket, sys
open_ports = []
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), 2).close()
        open_ports.append(port)
    except OSError:
        pass
print(json.dumps(open_ports))
"""
"""With an address and ports: which of them can be connected to. A policy drops, so a closed one costs two seconds."""

RESOLVE = """
import json, socket, sys
print(json.dumps({name: socket.gethostbyname(name) for name in sys.argv[1:]}))
"""
"""With names: their addresses; it fails if one has none."""

SCRAPE = """
import sys, urllib.request
print(urllib.request.urlopen("http://" + sys.argv[1] + ":9400/metrics", timeout=3).read().decode())
"""
"""With an address: what a Prometheus would get."""

SNAPSHOTS = r"""
import json, re, sys, time, urllib.request
steps, deadline = [], time.monotonic() + 120
while len(steps) < int(sys.argv[1]):
    if time.monotonic() > deadline:
        sys.exit(f"snapshots in two minutes: {steps}")
    page = urllib.request.urlopen("http://127.0.0.1:9400/metrics", timeout=3).read().decode()
    found = re.search(r"^trainer_snapshot_last_step\b.* ([\d.e+]+)$", page, re.M)
    if found and int(float(found[1])) not in steps:
        steps.append(int(float(found[1])))
    time.sleep(0.1)
print(json.dumps(steps))
"""
"""In the master's pod, with a number: the steps of so many snapshots in memory, the first of which may have been there before."""

HOLD_LOCK = """
import fcntl, select, sys
with open(sys.argv[1], "r+") as lock:
    print("waiting", flush=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    select.select([sys.stdin], [], [], 300)
"""
"""In the reader, with the run's lock file: queue for it, and hold it until standard input ends (or five minutes have passed)."""

OWN_MODEL = """from torch import nn
from ddp_trainer.tasks.cifar10 import Cifar10

class Small(Cifar10):
    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
"""
"""A user's model, for an image of three lines."""
