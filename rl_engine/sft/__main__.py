"""The command: `python -m rl_engine.sft --config NAME_OR_PATH [--resume | --overwrite] [--merge] [key.sub=value …]`.

Nothing heavy is imported until the configuration has been validated.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import sys
from typing import Annotated

import typer

from evals.command import exit_explained, exit_with_error, print_loading, quiet_libraries, settle_torch
from rl_engine.command import (
    EXPLAINED,
    ConfigFile,
    ConfiguredCommand,
    KeepOld,
    Overrides,
    Overwrite,
    Resume,
    contradiction,
    exit_untrained,
    explained,
    help_end,
)
from rl_engine.config.file import ConfigError, read_config
from rl_engine.config.sft import SftConfig
from rl_engine.run.checks import check_place
from rl_engine.run.output import Beginning
from rl_engine.sft.checks import check_quickly, wanted_of_hub
from rollout.hub import check_hub, stay_offline_without
from rollout.loading import loading
from rollout.stopping import Stopped, StopRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class SupervisedCommand(ConfiguredCommand):
    schema = SftConfig


@app.command(cls=SupervisedCommand, epilog=help_end("rl_engine.sft", "--config sft_jsonl.yaml data.path=answers.jsonl"))
def main(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    keep_old: KeepOld = False,
    merge: Annotated[bool, typer.Option("--merge", help="Also write the merged model to merged/.")] = False,
) -> None:
    """Train a LoRA adapter, or the whole model, on given answers (supervised fine-tuning)."""
    beginning = Beginning(resume=resume, overwrite=overwrite, keep_old=keep_old)
    if message := contradiction(beginning):
        exit_with_error(message, 2)
    stop = StopRequest()
    try:
        settings = read_config(SftConfig, config, overrides or ())
    except (ValueError, OSError) as error:
        exit_explained(error)
    try:
        if merge and settings.method == "full":
            raise ConfigError("--merge works only with method=lora: method=full already publishes a whole model")
        check_quickly(settings, resume=resume)
        check_place(settings, resume=resume, overwrite=overwrite)
        wanted = wanted_of_hub(settings)
        stay_offline_without(wanted)
        check_hub(wanted)
        print_loading("torch, transformers and TRL")
        settle_torch()
        with stop.listening():
            with loading():
                quiet_libraries()
                from rl_engine.sft.run import run_sft

            code = run_sft(settings, stop, beginning, merged=merge)
    except Stopped:
        exit_untrained(stop)
    except EXPLAINED as error:
        exit_with_error(*explained(error, settings))
    raise typer.Exit(code)


if __name__ == "__main__":
    sys.exit(app())
