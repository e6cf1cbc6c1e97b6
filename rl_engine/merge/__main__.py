"""The command: `python -m rl_engine.merge --adapter DIR_OR_RUN --output DIR`.

Imports nothing heavy until the adapter and the output directory are known to be good.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from evals.command import exit_explained, lasting_console, print_loading, quiet_libraries, settle_torch, stoppable
from rewards.command import Command
from rl_engine.run.output import refuse_inside
from rl_engine.run.records import MERGED
from rl_engine.run.trained_adapter import TrainedAdapter, merged_dtype_of, read_resolved
from rollout.config import ModelConfig
from rollout.files.durable import check_writable, written_aside
from rollout.files.exclusive import exclusive
from rollout.hub import check_hub, stay_offline_without
from rollout.models import check_files, hub_items

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command, epilog="Example: python -m rl_engine.merge --adapter runs/x --output models/x")
def main(
    adapter: Annotated[
        Path,
        typer.Option(
            metavar="DIR_OR_RUN", help="A published version, or a run: its best version, otherwise its latest."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Directory for the merged model; it must not exist yet.")],
    base_model: Annotated[
        str | None, typer.Option(help="Hub id or directory of the base model, if it has moved since training.")
    ] = None,
) -> None:
    """Merge an adapter into its base model and save the result with its tokenizer."""
    try:
        check_place(output)
        trained = read_resolved(adapter, base_model, lambda line: lasting_console().print(escape(line), soft_wrap=True))
        check_base(trained, base_model)
        with stoppable(), exclusive(output):
            merge_into(trained, output)
    except (ValueError, OSError) as error:
        exit_explained(error)


def check_place(output: Path) -> None:
    """Raises `FileExistsError` if something is there already, `ValueError` if the place is not writable."""
    check_free(output)
    check_writable(output.parent, "--output")
    refuse_inside(output, "--output", but=MERGED)


def check_free(output: Path) -> None:
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise FileExistsError(f"--output: {output} already exists, and nothing is replaced: give another directory")


def check_base(trained: TrainedAdapter, given: str | None) -> None:
    """Raises `ValueError` or `FileNotFoundError` if the base model is unavailable, damaged, or not the one given."""
    source = trained.base.source()
    if given not in (None, source):
        raise ValueError(f"--base-model is {given!r}, and has no effect: the base model is in {source}")
    check_files(source, "the base model")
    items = hub_items(ModelConfig(name=source, revision=trained.base.revision), "the base model")
    stay_offline_without(items)
    check_hub(items)


def merge_into(trained: TrainedAdapter, output: Path) -> None:
    """Write the merged model, and print what it was made from and what rounding lost."""
    print_loading("torch and transformers")
    settle_torch()
    quiet_libraries()
    # Saving a model makes transformers probe DeepSpeed, which would log that it searches for a GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from rl_engine.merge.weights import merge

    dtype = merged_dtype_of(trained)
    with written_aside(output) as scratch:
        rounding = merge(trained, dtype, scratch)
        check_free(output)  # again, since merging took minutes
    console = lasting_console()
    console.print(f"{trained.base.name} + {trained.directory} → {output}", soft_wrap=True, markup=False)
    console.print(f"stored in {dtype}: rounding moves a weight by {rounding.error_share:.2%} of the mean update")


if __name__ == "__main__":
    sys.exit(app())
