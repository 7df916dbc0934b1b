"""RunConfig: the one schema that every launcher, the chart and the report read.

Values come from a file (JSON or YAML), then the environment (`DDP__OPTIM__LR=0.1`), then `--set optim.lr=0.1`; later wins. Unknown
keys are refused, and a wrong value is reported with its key, the reason and the fix before any socket or GPU is touched.
"""

from ddp_trainer.config.learning import DataSection, ModelSection, OptimSection, PrecisionSection, TaskSection
from ddp_trainer.config.loading import keys_said, load, validate
from ddp_trainer.config.operation import (
    CheckpointSection,
    DistributedSection,
    FaultToleranceSection,
    RunSection,
    SlurmSection,
    TelemetrySection,
)
from ddp_trainer.config.schema import RunConfig, differences
from ddp_trainer.config.section import Section

__all__ = [
    "CheckpointSection",
    "DataSection",
    "DistributedSection",
    "FaultToleranceSection",
    "ModelSection",
    "OptimSection",
    "PrecisionSection",
    "RunConfig",
    "RunSection",
    "Section",
    "SlurmSection",
    "TaskSection",
    "TelemetrySection",
    "differences",
    "keys_said",
    "load",
    "validate",
]
