"""The command: `python -m rl_engine.push --adapter DIR --repo USER/NAME [--private] [--dry-run] …`.

Builds the release folder and uploads it to the hub. The token is read from where huggingface_hub stores it and is sent
nowhere else.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import enum
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import httpx2
import typer
from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars, validate_repo_id  # type: ignore[attr-defined]
from rich.console import Console
from rich.markup import escape

from evals.command import exit_explained, exit_with_error, lasting_console, stoppable
from rewards.command import Command
from rewards.streams import check_heard
from rl_engine.push.hub import Destination, licence_of, limit_waits, require_token, upload
from rl_engine.push.model_card import Release, headline
from rl_engine.push.release import make_release
from rl_engine.run.trained_adapter import TrainedAdapter, merged_dtype_of, read_resolved

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Dtype(enum.StrEnum):
    """Precision of a merged model."""

    float32 = enum.auto()
    bfloat16 = enum.auto()


@app.command(cls=Command, epilog="Example: python -m rl_engine.push --adapter runs/x/adapters/best --repo ME/NAME")
def main(
    adapter: Annotated[Path, typer.Option(help="A published version, or a run: its best, otherwise its latest.")],
    repo: Annotated[str, typer.Option(metavar="USER/NAME", help="Repository on the hub; created if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, list it, and stop.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder to write. Default: RUN/release/VERSION.")] = None,
    revision: Annotated[str, typer.Option(help="Branch to commit to; created if missing.")] = "main",
    tag: Annotated[str | None, typer.Option(help="Tag for the commit. Default: the version.")] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence of the adapter, as abbreviated on the hub. Default: the base model's.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the base model, if the run loaded it from a directory.")
    ] = None,
    completions: Annotated[
        bool, typer.Option("--completions", help="Include training problems and completions in report.html.")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="Also publish base model and adapter merged into one, in merged/.")
    ] = False,
    merged_dtype: Annotated[
        Dtype | None, typer.Option(help="Precision of the merged model. Default: the run's model.dtype.")
    ] = None,
) -> None:
    """Publish an adapter and its model card on the hub."""
    console = lasting_console()
    if not console.is_terminal:
        disable_progress_bars()
    limit_waits()
    say = partial(console.print, soft_wrap=True, markup=False)
    api = HfApi()
    try:
        check_names(repo, base_model)
        if merged_dtype is not None and not merged:
            raise ValueError("--merged-dtype is given without --merged")
        if not dry_run:
            require_token()
        trained = read_resolved(adapter, base_model, say)
        release = Release(
            adapter=trained,
            repo=repo,
            tag=tag or trained.version,
            licence=licence_of(api, trained.base, license),
            completions=completions,
            merged=(merged_dtype or merged_dtype_of(trained)) if merged else None,
        )
        # Saving a model makes transformers probe DeepSpeed, which would log that it searches for a GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        folder = output or folder_of(trained)
        with stoppable():
            files = make_release(release, folder, say)
        show(console, folder, files)
        if dry_run:
            check_heard()
    except (ValueError, OSError) as error:
        exit_explained(error)
    if not dry_run:
        destination = Destination(repo=repo, branch=revision, tag=release.tag, private=private)
        with stoppable():
            send(console, api, folder, destination, headline(trained))


def check_names(repo: str, base_model: str | None) -> None:
    if repo.count("/") != 1:
        raise ValueError(f"--repo is {repo!r}: write USER/NAME")
    for option, name in (("--repo", repo), ("--base-model", base_model)):
        if name is not None:
            try:
                validate_repo_id(name)
            except ValueError as error:
                raise ValueError(f"{option}: {error}") from error


def folder_of(adapter: TrainedAdapter) -> Path:
    """The release's directory: inside the run's, or next to an adapter without a run."""
    if adapter.run is not None:
        return adapter.run.directory / "release" / adapter.version
    return adapter.directory.with_name(f"{adapter.directory.name}-release")


def show(console: Console, folder: Path, files: Sequence[Path]) -> None:
    """Print the release's files with their sizes in bytes."""
    console.print(f"[bold]{escape(str(folder))}[/bold]")
    for path in files:
        console.print(f"{(folder / path).stat().st_size:>15,}  {escape(str(path))}")


def send(console: Console, api: HfApi, folder: Path, destination: Destination, message: str) -> None:
    """Upload the release and report the outcome."""
    try:
        changed = upload(api, folder, destination, message)
    except (OSError, httpx2.TransportError, RuntimeError) as error:
        # The last of these is how huggingface_hub reports that a file could not be sent; its cause has the reason.
        cause = f": {error.__cause__}" if error.__cause__ else ""
        exit_with_error(f"{error}{cause}\nRun the same command to continue: what the hub has is not sent again.", 1)
    except ValueError as error:
        exit_with_error(str(error), 2)
    where = f"{api.endpoint}/{destination.repo}/tree/{destination.tag}"
    console.print(escape(f"published: {where}" if changed else f"nothing to do: these files are at {where}"))


if __name__ == "__main__":
    sys.exit(app())
