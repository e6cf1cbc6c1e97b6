"""The command: `python -m rl_engine.train --config NAME_OR_PATH [--resume] [--dry-run] [key.sub=value …]`.

Imports nothing heavy until the configuration is known to be good.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from safetensors import SafetensorError

from evals.suites import find_suite, suite_needs_hub
from rl_engine.config import Config, load_config
from rollout import models
from rollout.engine import PoolError
from rollout.prompts import problems

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[str, typer.Option(help="A YAML file, or the name of a shipped configuration.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]…", help="Settings that replace the file's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in output_dir.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything but the weights, and stop.")] = False,
) -> None:
    """Train a LoRA adapter with reinforcement learning."""
    try:
        settings = load_config(config, overrides or ())
        stay_offline_if_possible(settings)
        code = run(settings, resume=resume, overwrite=overwrite, only_check=dry_run)
    except (ValueError, FileNotFoundError) as error:
        # Configuration, data or adapters that cannot be used: the message is made for people.
        fail(str(error), 2)
    except SafetensorError as error:
        fail(f"a file of weights cannot be read: {error}", 2)
    except PoolError as error:
        fail(f"{error}\nWhat was saved before stands: --resume continues it.", 1)
    except OSError as error:
        fail(explain(error), 1)
    raise typer.Exit(code)


def explain(error: OSError, paths: str = "model.name, data.path and eval.data_dir") -> str:
    """What the system or the hub client said, and the way out."""
    if error.errno is None:
        hint = f"On a machine without the hub, give {paths} as local paths."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Make space: what was saved before stands, and --resume continues it."
    else:
        hint = "What was saved before stands: --resume continues it."
    return f"{error}\n{hint}"


def fail(message: str, code: int) -> None:
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def stay_offline_if_possible(config: Config) -> None:
    """Where model, data and suites are all on this machine, forbid the libraries to ask the hub at all."""
    suites = [find_suite(name) for name in config.eval.suites]
    if not (
        models.needs_hub(config.model.name)
        or problems.needs_hub(config.data)
        or any(suite_needs_hub(suite, config.eval.data_dir) for suite in suites)
    ):
        os.environ["HF_HUB_OFFLINE"] = "1"


def run(config: Config, *, resume: bool, overwrite: bool, only_check: bool) -> int:
    """Assemble and train; the exit code."""
    ranks = join_quietly()
    from rl_engine.learner.ranks import leave_ranks
    from rl_engine.run.console import RunConsole
    from rl_engine.train.assemble import settled

    try:
        config = settled(config, RunConsole(quiet=not ranks.is_main, steps=config.train.steps))
        if only_check:
            from rl_engine.train.dry_run import dry_run

            dry_run(config, ranks, resume=resume)
            return 0
        return train_run(config, ranks, resume=resume, overwrite=overwrite)
    finally:
        leave_ranks()


def join_quietly() -> Ranks:
    """Enter the process group."""
    # Read when torch is loaded: vLLM's C++ side would report the memory binding it chose on every start.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    speak_only_of_what_matters()
    from rl_engine.learner.ranks import join_ranks

    return join_ranks()


def speak_only_of_what_matters() -> None:
    """Warnings in our own style, and no progress bars or questions of libraries."""
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # about what DeepSpeed calls
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    models.refuse_code_of_models()


def train_run(config: Config, ranks: Ranks, *, resume: bool, overwrite: bool) -> int:
    from rl_engine.run.output import check_output, sole_writer

    mine = sole_writer(Path(config.output_dir), overwrite=overwrite)
    with mine if ranks.is_main else contextlib.nullcontext():
        ranks.barrier()
        check_output(config, resume=resume)
        return train_in_place(config, ranks, resume=resume)


def train_in_place(config: Config, ranks: Ranks, *, resume: bool) -> int:
    """In an output directory that is known to be ours."""
    from rewards import Grader
    from rl_engine.learner.learner import SamplerGapError
    from rl_engine.report.page import NAME as REPORT
    from rl_engine.report.page import write_report
    from rl_engine.run.records import read_metrics
    from rl_engine.train.assemble import assemble
    from rl_engine.train.loop import summary_paths, train

    output = Path(config.output_dir)
    with Grader.from_config(config.rewards) as grader:
        run = assemble(config, ranks, grader, resume)
        run.stop.listen()
        try:
            train(run)
        except SamplerGapError as error:
            fail(f"step {run.step}, version {run.version}: {error}\n--resume goes on from the last checkpoint.", 1)
        finally:
            run.records.close()
            run.sampler.engine.close()
        if ranks.is_main:
            report = write_report([output], output / REPORT)
            run.console.summary(read_metrics(output), {**summary_paths(run), "report": report})
            if run.stop.signum is not None:
                run.console.note(f"stopped after step {run.step} as asked, and saved: --resume continues")
    return 0 if run.stop.signum is None else 128 + run.stop.signum


if __name__ == "__main__":
    sys.exit(app())
