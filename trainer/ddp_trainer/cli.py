"""`ddp ...`: the command line. Each command reads its arguments, then calls one function; all errors end here, as one sentence.

The only module that reads the process's environment, but for `XDG_CACHE_HOME` in `data/cache.py`.
"""

from __future__ import annotations

import os
import signal

if os.getpid() == 1:
    # In a container this process is PID 1, to which the kernel delivers no signal that it has no handler for: a pod that is deleted
    # while the imports below run (seconds on a busy node) would wait out its grace period. The agent takes the signal over later.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))

import contextlib
import io
import json
import re
import shutil
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ddp_trainer import config as configuration
from ddp_trainer.config import RunConfig
from ddp_trainer.config.operation import RUN_NAME
from ddp_trainer.errors import CONFIG_ERROR, DATA_ERROR, USER_ERROR, ConfigError, DataError, DdpError

BROUGHT = "ddp.commands"
"""The entry-point group by which other parts of the distribution add words to `ddp`: a function each, as one would give to typer."""


class Commands(TyperGroup):
    """Our own commands, then the brought ones. These are looked up only when they are listed or called: a rank must not pay for them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names; a brought command that cannot be imported here is left out."""
        return [*super().list_commands(ctx), *(entry.name for entry in sorted(entry_points(group=BROUGHT)) if _is_usable(entry))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        own = super().get_command(ctx, cmd_name)
        return own or next((_brought(entry) for entry in entry_points(group=BROUGHT, name=cmd_name)), None)


def _brought(entry: EntryPoint) -> Any:
    try:
        function = entry.load()
    except Exception as error:  # whatever a foreign module does when it is imported
        raise ConfigError(
            f"the command {entry.name} comes from {entry.value}, which does not load here ({error}); pip install 'ddp-operator[operator]'"
        ) from error
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(entry.name)(function)
    return typer.main.get_command(alone)


def _is_usable(entry: EntryPoint) -> bool:
    try:
        return _brought(entry) is not None
    except ConfigError:
        return False


app = typer.Typer(
    name="ddp",
    cls=Commands,
    help="Fault-tolerant PyTorch DDP training, from one laptop to a GPU cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at a run configuration without starting anything.", no_args_is_help=True)
app.add_typer(config_app, name="config")
checkpoints_app = typer.Typer(help="Look after a run's checkpoints: list, verify, prune, export.", no_args_is_help=True)
app.add_typer(checkpoints_app, name="checkpoints")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="Run configuration, JSON or YAML.", show_default="all defaults")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override one value; may be repeated.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Where the run lives; instead of run.root and run.name.")]


@app.command()
def local(
    config: ConfigFile = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Agents on this machine; wins over distributed.nodes.")] = None,
    run_dir: RunDir = None,
    settings: Settings = None,
) -> None:
    """Train on this machine: N agents, each as if it were a machine of its own."""
    from ddp_trainer.launchers.local import Local
    from ddp_trainer.launchers.view import View

    resolved = _load(config, settings, run_dir, workers)
    raise typer.Exit(Local(resolved, dict(os.environ), View()).run())


@app.command()
def demo(
    config: ConfigFile = None,
    data: Annotated[str, typer.Option("--data", help="sample, full (downloads), or a path.")] = "sample",
    run_dir: RunDir = None,
    settings: Settings = None,
) -> None:
    """See it work: train for some minutes, lose a worker in the middle, recover, and read the report."""
    from ddp_trainer.launchers.demo import Typed, fresh, run_demo

    source = "download" if data == "full" else data
    resolved = _load(config, [f"data.source={json.dumps(source)}", *(settings or [])], run_dir, None)
    said = configuration.keys_said(settings or [], os.environ)
    raise typer.Exit(run_demo(resolved if run_dir else fresh(resolved), said, dict(os.environ), Typed(_program(), config)))


@app.command()
def launch(config: ConfigFile = None, run_dir: RunDir = None, settings: Settings = None) -> None:
    """Be one node's agent: PID 1 in every container. Which node is read from the environment.

    Ranks write to this process's output, which is the container's log; the files logs/rank-N.log are written by `ddp local` only.
    """
    from dataclasses import asdict

    from ddp_trainer.launchers.identity import identify
    from ddp_trainer.resilience.entrypoint import last_words_of_error, run

    try:
        resolved, node = identify(_load(config, settings, run_dir, None), os.environ)
    except DdpError as error:
        last_words_of_error(error)
        raise
    code = run(resolved.model_dump(mode="json"), asdict(node), dict(os.environ))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # a thread that still waits inside torch for a lost host would abort the interpreter's orderly end, and the code with it
    os._exit(code)


@app.command()
def report(run_dir: Path) -> None:
    """Write RUN_DIR/report.html: one self-contained page about the run."""
    from ddp_trainer.report.page import write_report

    typer.echo(write_report(run_dir))


@app.command()
def top(targets: list[str], once: Annotated[bool, typer.Option("--once", help="One frame, then end.")] = False) -> None:
    """Show all workers of a run, live. TARGETS: a run directory, or agents' addresses."""
    from ddp_trainer.telemetry.top import top as show

    show(targets, once)


@config_app.command()
def check(file: Path, settings: Settings = None) -> None:
    """Say whether FILE is a valid configuration."""
    resolved = _load(file, settings, None, None)
    typer.echo(f"{file}: good; {resolved.world_size} ranks, {resolved.micro_batches} micro-batches, config hash {resolved.digest()}")


@config_app.command()
def show(file: Annotated[Path | None, typer.Argument()] = None, settings: Settings = None) -> None:
    """Print the configuration with every default filled in."""
    typer.echo(json.dumps(_load(file, settings, None, None).model_dump(mode="json"), indent=2))


@config_app.command()
def schema(
    file: Annotated[Path | None, typer.Argument(help="Write it there, where nothing may be yet.", show_default="print it")] = None,
) -> None:
    """Print the JSON schema of a run configuration, or write it to FILE."""
    text = json.dumps(RunConfig.model_json_schema(), indent=2)
    if file is None:
        typer.echo(text)
        return
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(f"{text}\n")
    except FileExistsError:  # check and show read their FILE: whoever gives a configuration here as well must not lose it
        raise ConfigError(f"{file} exists, and the schema would overwrite it; remove it, or give another file") from None
    except OSError as error:
        raise DataError(f"the schema cannot be written to {file}: {error.strerror}; give another file") from None
    typer.echo(file)


@checkpoints_app.command("list")
def list_checkpoints(
    run_dir: Path, verify: Annotated[bool, typer.Option("--verify", help="Read and hash every file; else manifests only.")] = False
) -> None:
    """List RUN_DIR's checkpoints, newest first: a table on a terminal, plain columns in a pipe."""
    from ddp_trainer.checkpoint.inventory import entries
    from ddp_trainer.checkpoint.listing import show

    show(entries(run_dir, hashed=verify))


@checkpoints_app.command("verify")
def verify_checkpoints(
    run_dir: Path, step: Annotated[int | None, typer.Option("--step", min=0, help="Only this one.", show_default="all")] = None
) -> None:
    """Read and hash every file of RUN_DIR's checkpoints. Ends with 3 if one is bad; nothing is moved."""
    from ddp_trainer.checkpoint.inventory import entries
    from ddp_trainer.checkpoint.listing import show

    found = entries(run_dir, hashed=True, step=step)
    show(found)
    raise typer.Exit(0 if all(entry.is_verified for entry in found) else DATA_ERROR.code)


@checkpoints_app.command("prune")
def prune_checkpoints(run_dir: Path, keep: Annotated[int, typer.Option("--keep", min=1, help="How many of the newest stay.")]) -> None:
    """Remove older checkpoints of RUN_DIR, while no run uses it. The newest one that verifies always stays."""
    from ddp_trainer.checkpoint.inventory import prune

    removed = prune(run_dir, keep)
    typer.echo(f"removed: {', '.join(map(str, removed)) or 'none'}")


@checkpoints_app.command("export")
def export_checkpoint(
    run_dir: Path,
    out: Path,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Which one.", show_default="the newest that verifies")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="The averaged parameters instead of the trained ones.")] = False,
) -> None:
    """Write a checkpoint's model to OUT/model.safetensors, and say how to load it."""
    from ddp_trainer.checkpoint.inventory import export

    typer.echo(export(run_dir, out, step, ema=ema))


def _load(file: Path | None, settings: list[str] | None, run_dir: Path | None, workers: int | None) -> RunConfig:
    extra: list[str] = list(settings or [])
    if workers is not None:
        extra.append(f"distributed.nodes={workers}")
    if run_dir is not None:
        where = run_dir.absolute()
        if not re.fullmatch(RUN_NAME, where.name):
            raise ConfigError(
                f"--run-dir {run_dir}: its last part is the run's name, and {where.name!r} cannot be one; "
                f"use letters, digits, '_', '-' and '.', such as runs/my-run"
            )
        extra += [f"run.root={json.dumps(str(where.parent))}", f"run.name={json.dumps(where.name)}"]
    return configuration.load(file, extra, os.environ)


def _program() -> str:
    """This command as the user typed it, such as `.venv/bin/ddp`, or its name where that is found."""
    return "ddp" if sys.argv[0] == shutil.which("ddp") else sys.argv[0]


def main() -> None:
    """The console script `ddp`: commands, with every error as a sentence on stderr and the exit code of its kind."""
    if sys.platform != "linux":
        _fail(f"the trainer needs Linux, whose kernel ties its processes together, but here is {sys.platform}; use a container", 2)
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:2")  # torch's store looks up its peers' names: a lost answer costs 1 s, not 5
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each lost store connection prints a page of C++ frames
    if sys.stdout is None:  # as after >&-
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # until the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: a path need not be text
    try:
        code: Any = app(standalone_mode=False)
        sys.stdout.flush()  # here, since at the interpreter's end a full disk would be a traceback
    except DdpError as error:
        _fail(str(error), error.exit.code)
    except BrokenPipeError:
        _gave_up_output()
        sys.exit(USER_ERROR.code)  # without a word, as typer does: who reads the output has seen enough
    except OSError as error:
        where = error.filename or ("standard output" if _gave_up_output() else "")
        _fail(f"{f'{where}: ' if where else ''}{error.strerror or error}; mend that, or give another path", DATA_ERROR.code)
    except typer.Abort:
        _fail("interrupted", 130)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message()} (see --help)", CONFIG_ERROR.code)  # click's own: a wrong command line
    sys.exit(code if isinstance(code, int) else 0)


def _gave_up_output() -> bool:
    """Whether nothing can be written to standard output, not even a line's end: then it is closed, else leaving would fail with 120."""
    try:
        print(flush=True)  # noqa: T201  # the command line's voice
    except OSError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return True
    return False


def _fail(message: str, code: int) -> None:
    print(f"ddp: {message}", file=sys.stderr)  # noqa: T201  # the command line's voice
    sys.exit(code)


__all__ = ["ConfigError", "main"]
