"""The command: `python -m rl_engine.doctor [--config NAME_OR_PATH] [key.sub=value …]`: can this machine run that?

Prints what the machine has and what the configuration would use, then trains two small steps and checks each part.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from evals.command import exit_explained, exit_with_error, print_loading, stoppable
from rewards.streams import check_heard
from rl_engine.command import ConfigFile, ConfiguredCommand, Overrides, help_end, join_ranks_quietly
from rl_engine.config import Config, load_config
from rl_engine.train.checks import check_quickly, wanted_of_hub
from rollout.hub import check_hub, stay_offline_without
from rollout.loading import loading
from rollout.models import hub_items_of_config

if TYPE_CHECKING:
    from rl_engine.doctor.selftest import Check
    from rl_engine.learner.ranks import Ranks

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=ConfiguredCommand, epilog=help_end("rl_engine.doctor", "--config gsm8k.yaml"))
def main(
    config: ConfigFile = "quickstart.yaml",
    overrides: Overrides = None,
) -> None:
    """Show what this machine has and check that a configuration runs on it, in about a minute."""
    try:
        settings = load_config(config, overrides or ())
        stay_offline_without(wanted_of_hub(settings))
        check_quickly(settings)
    except (ValueError, OSError) as error:
        exit_explained(error)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        exit_with_error("the doctor examines one rank: start it without a launcher", 2)
    print_loading("torch, transformers and DeepSpeed")
    try:
        with stoppable():
            passed = join_and_examine(settings)
        check_heard()
    except (ValueError, OSError) as error:
        exit_explained(error)
    raise typer.Exit(0 if passed else 1)


def join_and_examine(config: Config) -> bool:
    """`examine` in a process group. Raises `ValueError` or `OSError`."""
    ranks = join_ranks_quietly()
    from rl_engine.learner.ranks import leave_ranks

    try:
        return examine(config, ranks)
    finally:
        leave_ranks()


def examine(config: Config, ranks: Ranks) -> bool:
    """Print the machine, the settings and the checks. Returns whether all checks passed."""
    with loading():
        from rl_engine.doctor.machine import machine_rows
        from rl_engine.doctor.selftest import self_test, small
        from rl_engine.plan.card import settle_card, settle_precision, settle_rate
        from rl_engine.run.console import RunConsole

    console = RunConsole(quiet=not ranks.is_main, steps=0)
    console.console.print("[bold]machine[/bold]")
    console.print_rows(machine_rows())
    console.console.print("[bold]configuration[/bold]")
    check_hub(hub_items_of_config(config.model))
    config = settle_precision(config, ranks.device.type)
    config = ranks.broadcast(settle_card(settle_rate(config, console), ranks))
    console.print_rows(settings_rows(config, ranks))
    check_hub(wanted_of_hub(small(config, Path())))
    console.console.print("[bold]self-test[/bold]")

    def report(check: Check) -> None:
        verdict = "[green]ok    [/green]" if check.ok else "[bold red]failed[/bold red]"
        console.console.print(
            f"{verdict} {check.name:<11} {check.seconds:6.1f} s  {escape(check.figure)}", soft_wrap=True
        )

    with tempfile.TemporaryDirectory(prefix="rl_engine-doctor-") as directory:
        metrics = self_test(config, Path(directory) / "run", ranks, report)
    if metrics is None:
        console.note("the self-test stopped at the first check that failed")
        return False
    console.note(f"all checks passed; {metrics['throughput/tokens_per_s']:,.0f} tokens/s in a step this small")
    return True


def settings_rows(config: Config, ranks: Ranks) -> dict[str, str]:
    """Names and values of what the run would use, as far as known without loading weights."""
    from rl_engine.plan.card import sampler_line
    from rl_engine.policy.attention import SHARED_PROMPT
    from rl_engine.policy.base_model import attention_of, layout_of

    cuda = ranks.device.type == "cuda"
    rollout, learner = config.rollout, config.learner
    layout = layout_of(config, ranks.device)
    attention = attention_of(config, ranks.device)
    kernel = "plain products" if attention == SHARED_PROMPT else attention
    offload = ", optimizer in the machine's memory" if learner.offload_optimizer else ""
    return {
        "model": f"{config.model.name}, {config.model.dtype}, method {config.method}",
        "device": f"{ranks.device}, one rank, {'nccl' if cuda else 'gloo'}",
        "attention": f"{kernel} over {layout} rows in the learner, vLLM's own in the sampler",
        "sampler": sampler_line(config) if cuda else f"{rollout.kv_cache_gib:g} GiB of KV cache",
        "learner": f"ZeRO stage {learner.zero_stage}{offload}, {learner.tokens_per_microbatch:,} tokens per micro-batch"
        f", gradient checkpointing {'on' if learner.gradient_checkpointing else 'off'}",
    }


if __name__ == "__main__":
    sys.exit(app())
