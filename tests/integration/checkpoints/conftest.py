"""The small checkpoints of the unit tests, and second homes for them: a folder, and a bucket of a real S3 server."""

import sys
from pathlib import Path

import fsspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "checkpoint"))


@pytest.fixture(scope="session")
def s3_server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3_environment(s3_server, monkeypatch):
    """What a user sets for s3fs to find a server and its credentials."""
    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["folder", "s3"])
def home(request, tmp_path):
    """The URL of a place for one run, which is not there yet."""
    if request.param == "folder":
        return f"file://{tmp_path}/home/run"
    request.getfixturevalue("s3_environment")
    bucket = f"bucket-{abs(hash(str(tmp_path)))}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
    return f"s3://{bucket}/run"
