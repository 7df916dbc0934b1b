"""A local HTTP server that stands in for the one CIFAR-10 comes from, and can be told to misbehave."""

import hashlib
import io
import json
import os
import pickle
import tarfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from ddp_trainer.data.cifar_pickles import FOLDER
from ddp_trainer.tasks.cifar10 import CLASSES

IMAGES_PER_BATCH = 40
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def batch(name):
    """One file of CIFAR-10's python version: rows of all red, all green, all blue values. Noise, so that the archive stays large."""
    random = np.random.default_rng(BATCHES.index(name))
    data = random.integers(0, 256, (IMAGES_PER_BATCH, 3072), np.uint8)
    return pickle.dumps({"batch_label": name, "labels": random.integers(0, 10, IMAGES_PER_BATCH).tolist(), "data": data}, protocol=2)


def pack(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


class Mirror(ThreadingHTTPServer):
    """Serves one small archive in CIFAR-10's layout. `answers` says how, at any time:

    whole      as it is
    other      another one that could be unpacked and decoded as well: only a checksum tells
    cut        the first half; then the line is closed, though the header promised more
    held       the first half; the rest when it is to answer otherwise
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Download)
        self.told = threading.Condition()
        self.answer = "whole"
        self.downloads = 0
        self.files = {name: batch(name) for name in BATCHES} | {"batches.meta": pickle.dumps({"label_names": list(CLASSES)}, protocol=2)}
        self.archive = pack(self.files)
        self.other = pack({**self.files, "data_batch_3": self.files["data_batch_2"]})
        self.half_bytes = len(self.archive) // 2 // 32768 * 32768  # torchvision writes pieces of 32 KiB
        assert self.half_bytes > 0

    def handle_error(self, request, client_address):
        """A client that was killed is part of the tests."""

    def answers(self, how):
        with self.told:
            self.answer = how
            self.told.notify_all()

    def directions(self):
        """What `mirrored` needs to know, as one environment variable."""
        sums = {name: hashlib.md5(content).hexdigest() for name, content in self.files.items()}
        url = f"http://127.0.0.1:{self.server_port}/cifar-10-python.tar.gz"
        return json.dumps({"url": url, "archive": hashlib.md5(self.archive).hexdigest(), "files": sums})


class Download(BaseHTTPRequestHandler):
    def do_GET(self):
        mirror, half = self.server, self.server.half_bytes
        body = mirror.other if mirror.answer == "other" else mirror.archive
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.headers.get("Method") == "HEAD":  # torchvision looks for redirects so, and reads no body
            return
        mirror.downloads += 1
        with suppress(ConnectionError):
            self.wfile.write(body[:half])
            answer = mirror.answer
            with mirror.told:
                mirror.told.wait_for(lambda: mirror.answer != "held")
            if answer != "cut":
                self.wfile.write(body[half:])

    def log_message(self, *_):
        pass


def point_torchvision_there():
    """In a rank: torchvision's CIFAR-10 is the mirror's, by address and by checksum."""
    from torchvision.datasets import CIFAR10

    told = json.loads(os.environ["MIRROR"])
    CIFAR10.url, CIFAR10.tgz_md5 = told["url"], told["archive"]
    CIFAR10.train_list = [[name, told["files"][name]] for name in BATCHES[:-1]]
    CIFAR10.test_list = [[name, told["files"][name]] for name in BATCHES[-1:]]
    CIFAR10.meta = {**CIFAR10.meta, "md5": told["files"]["batches.meta"]}
