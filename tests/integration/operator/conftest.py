"""The API server, and the agent of a job's node 0, which tells its progress."""

import pytest
from aiohttp import web
from fake_api_server import FakeApiServer


@pytest.fixture
async def server():
    async with FakeApiServer() as running:
        yield running


@pytest.fixture
async def trainer():
    """Node 0's agent: training, and a step further with each look, until it is told to stand still."""
    document = {
        "schema_version": 1,
        "run": "demo",
        "attempt": 1,
        "phase": "training",
        "step": 10,
        "total_steps": 100_000,
        "loss": 1.25,
        "updated_at": 1.0,
        "world_size": 2,
    }
    moves = {"on": True}

    async def progress(_):
        if moves["on"]:
            document.update(step=document["step"] + 1, updated_at=document["updated_at"] + 1.0)
        return web.json_response(document)

    application = web.Application()
    application.router.add_get("/progress", progress)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1], moves
    await runner.cleanup()
