"""The command: `python -m rl_engine.sft --config NAME_OR_PATH [--resume] [--merge] [key.sub=value …]`.

Imports nothing heavy until the configuration is known to be good.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from evals.command import exit_with_error, quiet_libraries
from rl_engine.command import RESUME_OR_OVERWRITE, with_hint
from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rl_engine.run.records import check_services
from rl_engine.run.writable import check_writable
from rl_engine.sft.conversations import needs_hub
from rollout import models

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[str, typer.Option(help="A YAML file, or the name of a shipped configuration.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]…", help="Settings that replace the file's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in output_dir.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Also write the model with its adapter to merged/.")] = False,
) -> None:
    """Train a LoRA adapter, or the whole model, on answers: the supervised arm."""
    if resume and overwrite:
        exit_with_error(RESUME_OR_OVERWRITE, 2)
    try:
        settings = read_config(SftConfig, config, overrides or ())
        if not models.needs_hub(settings.model.name) and not needs_hub(settings.data):
            os.environ["HF_HUB_OFFLINE"] = "1"
        check_writable(Path(settings.output_dir), "output_dir")
        check_services(settings.log)
        quiet_libraries()
        from rl_engine.sft.run import run_sft

        code = run_sft(settings, resume=resume, overwrite=overwrite, merged=merge)
    except (ValueError, FileNotFoundError) as error:
        # Configuration, data or adapters that cannot be used: the message is made for people.
        exit_with_error(str(error), 2)
    except OSError as error:
        exit_with_error(with_hint(error, "model.name and data.path"), 1)
    raise typer.Exit(code)


if __name__ == "__main__":
    sys.exit(app())
