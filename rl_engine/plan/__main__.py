"""The command: `python -m rl_engine.plan --config NAME_OR_PATH [--devices 8x80] … [key.sub=value …]`.

Predicts what a run will need from the configuration and the model's config.json alone: no weights, no data, no engine.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from evals.command import exit_explained, exit_with_error, print_loading, print_table
from rewards.streams import check_heard
from rl_engine.command import ConfiguredCommand, Overrides, help_end
from rl_engine.config import Config, load_config
from rl_engine.config.file import RUN_CONFIG, ConfigError
from rl_engine.plan.sizes import Devices
from rl_engine.run.records import METRICS
from rollout.hub import check_hub, stay_offline_without
from rollout.models import check_tokenizer, hub_items_of_config
from rollout.servable import check_family, layer_kinds

if TYPE_CHECKING:
    from rl_engine.plan.devices import DevicePlan
    from rl_engine.plan.forecast import Forecast
    from rl_engine.plan.step_time import DataSheet, StepTime, Throughput

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=ConfiguredCommand, epilog=help_end("rl_engine.plan", "--config gsm8k.yaml --devices 1x80 lora.rank=8"))
def main(
    config: Annotated[
        list[str],
        typer.Option(help="A YAML file, or the name of a shipped configuration. Repeat it to plan several together."),
    ],
    overrides: Overrides = None,
    devices: Annotated[
        list[str] | None,
        typer.Option(metavar="COUNTxGIB", help="GPUs to plan for, as 8x80; may be repeated. Default: this machine."),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Mean prompt length. Default: the longest allowed.")
    ] = None,
    completion_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Mean completion length. Default: as measured in --from, otherwise the longest allowed."
        ),
    ] = None,
    supervised_tokens: Annotated[
        int | None, typer.Option(min=1, help="Also compare the capacity with supervised training on this many tokens.")
    ] = None,
    loss_nats: Annotated[float, typer.Option(min=0, help="Log loss of a supervised token in its first epoch.")] = 0.69,
    measured_in: Annotated[
        Path | None, typer.Option("--from", metavar="RUN_DIR", help="Use the measured speed of this run's steps.")
    ] = None,
    from_devices: Annotated[int, typer.Option(min=1, help="How many devices the run in --from used.")] = 1,
    tokens_per_s: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="S L", help="Completion tokens per second that one device samples, and learns from."),
    ] = None,
    card: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="TFLOPS TB/S", help="A GPU's data sheet: peak speed and memory bandwidth."),
    ] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Share of --card's peak speed that is reached.")] = 0.4,
) -> None:
    """Show what a configuration will need: parameters, capacity, compute, memory and time, with warnings."""
    if sum(given is not None for given in (measured_in, tokens_per_s, card)) > 1:
        exit_with_error("give one of --from, --tokens-per-s and --card", 2)
    if not all(0 < each < math.inf for each in tokens_per_s or card or ()):
        exit_with_error("--tokens-per-s and --card are finite numbers above 0", 2)
    try:
        refuse_idle(**locals())
        given = [Devices.parse(text) for text in devices or ()]
        refuse_no_run(measured_in)
        several = read_all(config, overrides or ())
        refuse_long(several[0], prompt_tokens, completion_tokens)
        print_loading("torch and transformers")
        if len(several) > 1:
            show_together(several, given)
            check_heard()
            return
        settings, gpus = on_cards(several[0], given)
        speed = speed_of(settings, measured_in, from_devices, tokens_per_s, card, mfu)
        made, on_devices = plan(settings, gpus, speed, prompt_tokens, completion_tokens)
        show(made, on_devices, speed, supervised_line(made, supervised_tokens, loss_nats))
        check_heard()
    except (ValueError, OSError) as error:
        exit_explained(error)


# Option → the option it depends on, and its own default.
NEEDS_OPTION = {
    "mfu": ("card", 0.4),
    "from_devices": ("from", 1),
    "loss_nats": ("supervised_tokens", 0.69),
}
SINGLE_PLAN = ("prompt_tokens", "completion_tokens", "supervised_tokens", "from", "tokens_per_s", "card")
"""Options that only apply when planning a single configuration."""


def refuse_idle(config: Sequence[str], measured_in: Path | None, **options: Any) -> None:
    """Raise `ConfigError` for an option that was given but has no effect with the others."""
    options["from"] = measured_in
    for name, (other, default) in NEEDS_OPTION.items():
        if options[name] != default and options[other] is None:
            raise ConfigError(f"{_flag(name)} is {options[name]}, and has no effect: give {_flag(other)} too")
    for name in SINGLE_PLAN if len(config) > 1 else ():
        if options[name] is not None:
            raise ConfigError(f"{_flag(name)} has no effect with several --config: plan them one by one")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def refuse_no_run(measured_in: Path | None) -> None:
    """Raise `ConfigError` if `--from` is not the directory of a run, so that no speed can have been measured there."""
    if measured_in is None or all((measured_in / name).is_file() for name in (METRICS, RUN_CONFIG)):
        return
    raise ConfigError(f"--from: {measured_in} is not a run's directory: it needs {METRICS} and {RUN_CONFIG}")


def speed_of(
    config: Config,
    measured_in: Path | None,
    from_devices: int,
    tokens_per_s: tuple[float, float] | None,
    card: tuple[float, float] | None,
    mfu: float,
) -> Throughput | DataSheet | None:
    """The speed of a device, from whichever option is given."""
    from rl_engine.plan.step_time import DataSheet, Throughput, measured

    if measured_in is not None:
        return measured(measured_in, config, from_devices)
    if tokens_per_s is not None:
        sampling, learning = tokens_per_s
        return Throughput(sampling=sampling, learning=learning, source="given by --tokens-per-s")
    return None if card is None else DataSheet(tflops=card[0], tb_per_s=card[1], mfu=mfu)


def refuse_long(config: Config, prompt_tokens: int | None, completion_tokens: int | None) -> None:
    """Raise `ConfigError` for a mean length above the longest that the run allows."""
    for option, mean, key, longest in (
        ("--prompt-tokens", prompt_tokens, "data.max_prompt_tokens", config.data.max_prompt_tokens),
        ("--completion-tokens", completion_tokens, "sampling.max_tokens", config.sampling.max_tokens),
    ):
        if mean is not None and mean > longest:
            raise ConfigError(
                f"{option} is {mean}, a mean above the longest, {key} {longest}: lower it, or raise {key}"
            )


def read_all(names: Sequence[str], overrides: Sequence[str]) -> list[Config]:
    """The configurations, after checking that what they need from the hub is available and that no model's tokenizer is
    known to be unusable."""
    several = [load_config(name, overrides) for name in names]
    for each in several:
        check_tokenizer(each.model.name)
    wanted = list(dict.fromkeys(item for each in several for item in hub_items_of_config(each.model)))
    stay_offline_without(wanted)
    check_hub(wanted)
    return several


def show_together(configs: list[Config], devices: list[Devices]) -> None:
    """Print which of the runs can train together, and what that needs."""
    from rl_engine.plan.concurrent import plan_together
    from rl_engine.run.console import RunConsole

    settled = [on_cards(config, devices)[0] for config in configs]
    for lines in plan_together(settled, devices):
        RunConsole(quiet=False, steps=0).print_rows(lines)


def on_cards(config: Config, devices: list[Devices]) -> tuple[Config, list[Devices]]:
    """The configuration with the precision it would have there, and the GPUs to plan for: those given, or else this
    machine's (none means its CPU)."""
    import torch

    from rl_engine.plan.card import settle_precision
    from rl_engine.run.memory import GIB

    if not devices and torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / GIB
        devices = [Devices(count=torch.cuda.device_count(), gib=gib)]
    return settle_precision(config, "cuda" if devices else "cpu"), devices


def plan(
    config: Config,
    gpus: list[Devices],
    speed: Throughput | DataSheet | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
) -> tuple[Forecast, list[DevicePlan]]:
    """The forecast of the run, and its plan for each choice of GPUs, or for this machine's CPU if there are none."""
    from rl_engine.plan.devices import on_gpus, on_this_cpu
    from rl_engine.plan.forecast import forecast
    from rl_engine.policy.base_model import load_meta_model

    made = forecast(
        config,
        load_meta_model(config.model),
        device_type="cuda" if gpus else "cpu",
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens or getattr(speed, "completion_tokens", None),
    )
    check_family(made.meta_model.config, f"model.name {config.model.name}", adapter=made.is_lora)
    return made, [on_gpus(made, each, speed) for each in gpus] or [on_this_cpu(made, speed)]


def show(
    made: Forecast, on_devices: list[DevicePlan], speed: Throughput | DataSheet | None, further: dict[str, str]
) -> None:
    """Print the plan."""
    from rl_engine.plan.lines import lines_of
    from rl_engine.run.console import RunConsole

    config = made.config
    console = RunConsole(quiet=False, steps=0)
    console.print_rows(
        {
            "model": f"{config.model.name}, {config.model.dtype}, method {config.method}",
            "rate": f"{made.rate:g}, constant",
            "by rule": rule_line(made),
            **lines_of(made),
            **further,
        }
    )
    print_table(table_of(made, on_devices), console.console)
    for each in on_devices:
        for refusal in each.refusals:
            console.note(f"{each.title}: {refusal}")
    console.console.print("[bold]assumed[/bold]")
    for line in assumptions(made, speed):
        console.note(f"- {line}")


def rule_line(made: Forecast) -> str:
    """The value that `optim.lr: auto` would have, and its derivation."""
    if made.rule is None:
        return f"none is known for lora.init {made.config.lora.init}: its best rate moves with lora.numbers"
    return "\n".join((f"{made.rule.value:.3g}", *made.rule.derivation))


def supervised_line(made: Forecast, tokens: int | None, loss_nats: float) -> dict[str, str]:
    """The capacity that supervised training on `tokens` tokens would need of the same adapter."""
    from rl_engine.plan.capacity import capacity_of, supervised_bits
    from rl_engine.plan.lines import describe_capacity

    if tokens is None:
        return {}
    config, bits = made.config, supervised_bits(tokens, loss_nats)
    capacity = capacity_of(made.meta_model, config.lora, config.method, bits)
    return {
        "supervised": f"{tokens:,} tokens, each seen once at {loss_nats:g} nats, teach at most "
        f"{capacity.information_bits:,.0f} bits: {describe_capacity(capacity, config)}"
    }


def table_of(made: Forecast, on_devices: list[DevicePlan]) -> Table:
    """A table with a column for each choice of devices: memory by part, sampling, time."""
    from rl_engine.plan.memory import PHASES

    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("GiB of one device")
    for each in on_devices:
        table.add_column(escape(each.title), justify="right")
    names = list(dict.fromkeys(part.name for each in on_devices for part in each.memory.parts if not part.on_host))
    for name in sorted(names, key=lambda name: -max(each.memory.part(name) for each in on_devices)):
        table.add_row(name, *(f"{each.memory.part(name):.2f}" for each in on_devices))
        if name == "sampler":
            table.add_row("  weights", *(f"{each.sampler.weights:.2f}" for each in on_devices if each.sampler))
            table.add_row("  KV cache", *(f"{each.sampler.kv_cache:.2f}" for each in on_devices if each.sampler))
            table.add_row("  while learning", *("asleep" if each.sleeps else "awake" for each in on_devices))
    for phase in PHASES:
        table.add_row(
            f"needed in {phase}",
            *(f"{each.memory.needed(phase):.2f} of {each.room.device_gib:.2f}" for each in on_devices),
        )
    host = [max(each.memory.needed(phase, on_host=True) for phase in PHASES) for each in on_devices]
    if any(host):
        table.add_row("needed of host memory", *(f"{gib:.2f}" for gib in host))
    table.add_row("fits", *("no" if each.refusals else "yes" for each in on_devices), end_section=True)
    table.add_row("groups to sample", *(_groups(each) for each in on_devices))
    table.add_row("sequences side by side", *(str(each.concurrent_sequences) for each in on_devices), end_section=True)
    if any(each.time for each in on_devices):
        steps = made.config.train.steps
        for name, value in TIMES.items():
            table.add_row(
                name, *(f"{value(each.time, steps, each.count):,.2f}" if each.time else "-" for each in on_devices)
            )
    return table


TIMES: dict[str, Callable[[StepTime, int, int], float]] = {
    "sampling, s": lambda time, steps, count: time.sampling_s,
    "learning, s": lambda time, steps, count: time.learning_s,
    "grading and publishing, s": lambda time, steps, count: time.other_s,
    "a step, s": lambda time, steps, count: time.step_s,
    "the run, hours": lambda time, steps, count: steps * time.step_s / 3600,
    "the run, device hours": lambda time, steps, count: steps * time.step_s / 3600 * count,
}


def _groups(each: DevicePlan) -> str:
    return f"{each.groups}; {each.idle} devices have none" if each.idle else str(each.groups)


def assumptions(made: Forecast, speed: Throughput | DataSheet | None) -> list[str]:
    """The assumptions behind the figures."""
    from rl_engine.plan.sizes import UNATTENDING, Widths
    from rl_engine.plan.step_time import Throughput
    from rl_engine.policy.base_model import DTYPES

    config, work = made.config, made.work
    lines = [
        "a calculation: only what is called measured was run",
        f"every prompt has {work.prompt_tokens:,} tokens and every completion {work.completion_tokens:,} (at most "
        f"{config.data.max_prompt_tokens:,} and {config.sampling.max_tokens:,}); every group carries a learning signal",
    ]
    kinds = {*layer_kinds(made.meta_model.config)} - {"full_attention", "attention", "hybrid"}
    if stateful := sorted(kinds & UNATTENDING):
        held = Widths.of(made.meta_model).state_bytes(DTYPES[config.model.precision].itemsize)
        lines.append(
            f"layers without keys and values ({', '.join(stateful)}) attend to nothing; the states that a sequence has "
            f"there, {held / 2**20:.2f} MiB, are counted, and what is computed with them beside the layers' matrices "
            "is not"
        )
    if narrow := sorted(kinds - UNATTENDING):
        lines.append(
            f"every other layer attends to all positions and keeps their keys and values; of this model some do not "
            f"({', '.join(narrow)}): those compute and keep less"
        )
    if config.rollout.placement == "ray":
        lines.append(
            "the workers' own GPUs are not planned for: times are for devices that take turns at sampling and learning"
        )
    if (cards := config.rollout.tensor_parallel_size) > 1:
        lines.append(
            f"a sampler on {cards} such GPUs (rollout.tensor_parallel_size): device hours leave out all but one"
        )
    if speed is None:
        lines.append("no time is predicted: give a speed with --from, --tokens-per-s or --card")
    elif isinstance(speed, Throughput):
        rates = f"{speed.sampling:,.0f} completion tokens per second sampled and {speed.learning:,.0f} learned from"
        other = "grading and publishing as measured there" if speed.other_s else "grading and publishing not counted"
        lines.append(f"speed {speed.source}: {rates} on each device, whatever their number; {other}")
    else:
        lines.append(
            f"a GPU of {speed.tflops:g} TFLOP/s, of which {speed.mfu:.0%} is reached, and {speed.tb_per_s:g} TB/s, "
            "reached in full: the sampling time is a bound that no engine beats; grading and publishing not counted"
        )
    return lines


if __name__ == "__main__":
    sys.exit(app())
