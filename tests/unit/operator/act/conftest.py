"""The fake API server lives beside the tests of the whole process; here it serves single calls."""

import sys
from pathlib import Path

import pytest
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from ddp_operator.act.api_client import ClusterApi

sys.path.insert(0, str(Path(__file__).parents[3] / "integration" / "operator"))
from fake_api_server import FakeApiServer


@pytest.fixture
async def server():
    async with FakeApiServer() as running:
        yield running


@pytest.fixture
async def api(server):
    connection = client_of(server.url)
    yield connection
    await connection.close()


def client_of(url):
    where = type.__call__(Configuration)
    where.host = url
    return ClusterApi(ApiClient(where))


@pytest.fixture
def connect_to():
    return client_of
