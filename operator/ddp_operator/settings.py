"""The operator's settings: one schema, read from the environment (`DDP_OPERATOR__KEY`) by `main`, and by nobody else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseModel):
    """Every field has a default that suits a cluster of a thousand runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespaces: tuple[str, ...] = ()
    """Where to look; empty: in the whole cluster."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 8080
    """Dashboard, /metrics, /healthz and /readyz."""
    identity: str = ""
    """Who holds the lease: the pod's name; "" takes the host's."""
    lease_namespace: str = ""
    """Where the lease is; "" takes the pod's own namespace, else the first of `namespaces`."""
    lease_name: str = "ddp-operator"
    lease_seconds: Seconds = 15.0
    """A leader that does not renew for so long has lost; it stops acting a third earlier."""
    adopt: bool = True
    """Make TrainingRuns for labelled PyTorchJobs."""
    progress_seconds: Seconds = 10.0
    """How often node 0 of a running job is asked. Mere progress is written at most once in one and a half times this."""
    progress_timeout_seconds: Seconds = 2.0
    sweep_seconds: Seconds = 60.0
    """How often everything is listed, so that a lost deletion does no harm for longer."""
    watcher_stale_seconds: Seconds = 50.0
    """A watcher without a sign of life for so long makes the liveness probe fail."""
    start_seconds: Seconds = 120.0
    """How long the start may be refused, or find no TrainingRun CRD; then it ends with a sentence. It waits for a server that is away."""
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
