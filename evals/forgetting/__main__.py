"""The command: `python -m evals.forgetting --model M [--adapter DIR …] --output FILE.json`.

Measures how much of the base model's knowledge is lost, by lm-evaluation-harness tasks that the adapter was not trained
on, and how far the answers to the trained task have moved, KL(base ‖ policy). Imports nothing heavy until the arguments
have been checked.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from evals.command import (
    check_output,
    exit_explained,
    exit_with_error,
    lasting_console,
    print_loading,
    print_table,
    quiet_libraries,
    settle_torch,
)
from evals.policies import named_version, refuse_unserved
from evals.protocol.base_commit import commit_to_read, other_base, revision_to_read
from evals.scoring.versions import package_versions
from rewards.command import Command, exit_code
from rollout.adapters import AdapterError, read_manifest, sha256_of
from rollout.config import LARGEST_SEED, ModelConfig
from rollout.engine import EngineError, EngineSettings, ScoringEngine
from rollout.files.durable import check_writable, write_synced
from rollout.files.exclusive import exclusive
from rollout.hub import HubItem, check_hub
from rollout.models import (
    check_files,
    hub_items,
    is_wrapper,
    layer_sizes,
    locate_model,
    read_model_config,
    read_tokenizer,
)
from rollout.peft_format import refuse_misfit
from rollout.servable import check_cards, check_semaphores, check_servable, context_length, serving_precision
from rollout.stopping import Stopped, StopRequest
from rollout.types import BASE, AdapterRef

if TYPE_CHECKING:
    from rich.status import Status

    from evals.forgetting.harness import Tasks
    from evals.forgetting.prompts import TaskPrompts
    from evals.forgetting.table import PolicyResult

FORMAT = 1
TASKS = "hellaswag, arc_challenge, winogrande"
OF_PROMPTS = ("problems", "samples", "max_tokens", "data_dir")
OF_TASKS = ("task_dir", "limit", "context")
StartEngine = Callable[[EngineSettings], Any]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingOptions:
    """The options of the command."""

    model: str
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    adapters: tuple[str, ...] = ()
    """As given to `--adapter`: `[NAME=]DIR` each."""
    tasks: tuple[str, ...]
    task_dir: Path | None = None
    limit: int | None = None
    prompts: str | None = None
    data_dir: str | None = None
    problems: int = 128
    samples: int = 4
    max_tokens: int | None = None
    context: int = 2048
    seed: int = 0
    output: Path
    overwrite: bool = False
    tensor_parallel_size: int = 1
    memory_fraction: float = 0.9
    kv_cache_gib: float = 2.0


TaskDir = Annotated[
    Path | None, typer.Option(help="Directory of task files (YAML) that take precedence over the harness's own.")
]
Output = Annotated[
    Path, typer.Option(metavar="FILE.json", help="JSON file to write; the table goes next to it as Markdown.")
]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seeds the choice of prompts and the sampling.")]
Prompts = Annotated[
    str | None, typer.Option(help="Prompts for the KL: a run, its config.yaml, a file of problems, or a suite.")
]


@app.command(
    cls=Command,
    epilog="Example: python -m evals.forgetting --model M --adapter DIR --output lost.json",
)
def main(
    model: Annotated[str, typer.Option(help="Base model: hub id, local directory, or `embedded`.")],
    output: Output,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]DIR", help="A version, or a run (its best, else its latest); may be repeated."),
    ] = None,
    tasks: Annotated[str, typer.Option(help="Comma-separated lm-eval tasks; '' for none.")] = TASKS,
    task_dir: TaskDir = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N documents of each task.")] = None,
    prompts: Prompts = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Directory with the suites' .jsonl files, read instead of the hub.")
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="How many prompts to draw for the KL.")] = 128,
    samples: Annotated[int, typer.Option(min=1, help="Completions per prompt, sampled from the base model.")] = 4,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of a completion, in tokens. Default: the run's, or 256.")
    ] = None,
    context: Annotated[int, typer.Option(min=2, help="Maximum length of a task's document, in tokens.")] = 2048,
    seed: Seed = 0,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the base model.")] = None,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"],
        typer.Option(help="auto: bfloat16, or float32 for `embedded` on a CPU."),
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="CUDA only: how many GPUs share the model.")] = 1,
    memory_fraction: Annotated[
        float, typer.Option(min=0.05, max=1, help="CUDA only: share of each GPU's memory to use.")
    ] = 0.9,
    kv_cache_gib: Annotated[float, typer.Option(min=0.05, help="CPU only: size of the KV cache, in GiB.")] = 2.0,
) -> None:
    """Measure what a base model lost in training, adapter by adapter, with one engine."""
    arguments = dict(locals())
    arguments["adapters"] = tuple(arguments.pop("adapter") or ())
    arguments["tasks"] = tuple(filter(None, map(str.strip, arguments.pop("tasks").split(","))))
    options, stop = ForgettingOptions(**arguments), StopRequest()
    try:
        check_quickly(options)
        check_files(model, "--model")
        check_hub(wanted_of_hub(options))
        print_loading("torch, transformers and vLLM")
        os.environ.setdefault("TQDM_DISABLE", "1")  # the harness shows a progress bar for every loop
        with stop.listening(), exclusive(output):
            start(options)
    except Stopped:
        exit_with_error("stopped; an unfinished measurement is not kept", stop.exit_code)
    except EngineError as error:
        exit_with_error(str(error), 1)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is None and exit_code(error) == 1:  # a library's, not the disk's
            exit_with_error(
                f"{error}\nOn a machine without the hub, give --model, --task-dir and --prompts as local paths.", 1
            )
        exit_explained(error)


def start(options: ForgettingOptions) -> None:
    """Measure in this process."""
    settle_torch()
    quiet_libraries()
    check_semaphores()
    check_cards()
    serving_precision(options.dtype, options.model, adapter=bool(options.adapters))
    from rollout.vllm import start_engine

    run(options, lasting_console(), start_engine)


def run(options: ForgettingOptions, console: Console, start_engine: StartEngine) -> None:
    """Run the measurement. Raises `ValueError`, `FileNotFoundError` or `OSError` if something cannot be measured, if
    possible before weights are loaded."""
    start = time.monotonic()
    markdown_file = options.output.with_suffix(".md")
    for note in check_quickly(options):
        console.print(escape(note), soft_wrap=True)
    model = locate_model(options.model)
    adapters = find_adapters(options.adapters, console)
    from evals.forgetting.prompts import read_task_prompts
    from evals.forgetting.table import markdown, table, to_json

    commit = commit_to_read(options.model, options.revision, options.adapters)
    if commit is not None:
        console.print(f"base model {options.model} at commit {commit}", soft_wrap=True, markup=False)
    for message in other_base(options.model, options.revision, commit, options.adapters):
        console.print(f"[yellow]warning:[/yellow] {escape(message)}", soft_wrap=True)
    options = replace(options, revision=commit)
    tokenizer = read_tokenizer(model, commit)
    model_config = read_model_config(model, commit, f"--model {options.model}")
    refuse_misfits(adapters, options.model, model_config)
    check_servable(model_config, f"--model {options.model}", adapter=bool(adapters))
    prompts = None
    if options.prompts is not None:
        prompts = read_task_prompts(
            options.prompts,
            options.data_dir,
            tokenizer,
            count=options.problems,
            samples=options.samples,
            max_tokens=options.max_tokens,
            seed=options.seed,
        )
    tasks = import_harness().load_tasks(options.tasks, options.task_dir, tokenizer) if options.tasks else None
    settings = engine_settings(options, model, adapters, prompts, context_length(model_config))
    with console.status("starting vLLM"):
        engine = start_engine(settings)
    try:
        policies = measure(options, adapters, engine, settings.dtype, prompts, tasks, console)
    finally:
        engine.close()
    print_table(table(policies), console)
    report = {
        "format": FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
        "model": {"name": options.model, "revision": options.revision, "dtype": settings.dtype},
        "tasks": tasks.describe() if tasks else {},
        "limit": options.limit,
        "prompts": {"source": options.prompts, **prompts.describe()} if prompts else None,
        "seed": options.seed,
        "policies": to_json(policies),
        "versions": package_versions(),
    }
    # The report first: without it, the table next to it would not be recognized as ours.
    write_synced(options.output, json.dumps(report, indent=2) + "\n")
    write_synced(markdown_file, markdown(policies))
    console.print(f"written to {escape(str(options.output))}")


def check_quickly(options: ForgettingOptions) -> list[str]:
    """Messages about earlier results that will be replaced. Raises `ValueError` for errors that can be found without
    loading anything: nothing to measure, an option without effect, an output that cannot be written."""
    if not options.tasks and options.prompts is None:
        raise ValueError("nothing to measure: give --tasks, --prompts or both")
    defaults = {field.name: field.default for field in fields(ForgettingOptions)}
    for names, idle, why in (
        (OF_PROMPTS, options.prompts is None, "without --prompts no KL is measured"),
        (OF_TASKS, not options.tasks, "--tasks is empty"),
    ):
        for name in names:
            if idle and (value := getattr(options, name)) != defaults[name]:
                raise ValueError(f"--{name.replace('_', '-')} is {value}, and has no effect: {why}")
    check_writable(options.output.parent, "--output")
    return check_output(options.output, overwrite=options.overwrite, companions=[options.output.with_suffix(".md")])


def wanted_of_hub(options: ForgettingOptions) -> list[HubItem]:
    revision = revision_to_read(options.model, options.revision, options.adapters)
    return hub_items(ModelConfig(name=options.model, revision=revision), "--model")


def import_harness() -> ModuleType:
    """Import the module that needs lm-evaluation-harness. Raises `ValueError` if that, an extra, is not installed."""
    try:
        import evals.forgetting.harness
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--tasks needs lm-evaluation-harness ({error}): pip install 'rl_engine[forgetting]', "
            "or --tasks '' for the KL alone"
        ) from error
    return evals.forgetting.harness


def find_adapters(arguments: Sequence[str], console: Console) -> list[AdapterRef]:
    """The published versions of `--adapter [NAME=]DIR`, verified by their manifests. Prints which version of a run was
    chosen.

    Raises `AdapterError` for anything else than a published version, for two with the same name, and for full models
    together with adapters.
    """
    refs = []
    for argument in arguments:
        name, meant = named_version(argument)
        directory = meant.directory.resolve()
        if meant.why:
            console.print(escape(meant.why), soft_wrap=True)
        manifest = read_manifest(directory)
        refs.append(
            AdapterRef(
                name=name or manifest["name"],
                version=int(manifest["version"]),
                path=directory,
                sha256=sha256_of(directory / "manifest.json"),
                rank=int(manifest["rank"]),
            )
        )
    keys = [ref.key for ref in refs]
    if len(set(keys)) < len(keys):
        raise AdapterError(f"--adapter: {', '.join(keys)} are not all different; name them: --adapter NAME=DIR")
    if len({ref.rank == 0 for ref in refs}) > 1:
        raise AdapterError("--adapter: whole models and adapters cannot share an engine; measure them one by one")
    return refs


def refuse_misfits(refs: Sequence[AdapterRef], model: str, model_config: Any) -> None:
    """Raise `ValueError` for an adapter of another model, or one that vLLM cannot serve. Full models, of rank 0, have
    their own layers and are not checked."""
    adapters = [ref for ref in refs if ref.rank]
    sizes = layer_sizes(model_config, f"--model {model}") if adapters else {}
    for ref in adapters:
        refuse_misfit(ref.path, model, sizes, all_named=not is_wrapper(model_config))
        refuse_unserved(ref.path, model_config)


def engine_settings(
    options: ForgettingOptions, model: str, adapters: Sequence[AdapterRef], prompts: TaskPrompts | None, longest: int
) -> EngineSettings:
    """Settings of the engine. Raises `ValueError` if a prompt and its completion exceed the model's context of
    `longest` tokens."""
    needed = 2
    if prompts is not None:
        needed = max(len(one.token_ids) for one in prompts.prompts) + prompts.sampling.max_tokens + 1
    if needed > longest:
        raise ValueError(f"--max-tokens: the longest prompt and its completion take {needed:,} of {longest:,} tokens")
    return EngineSettings(
        model=model,
        revision=options.revision,
        dtype=serving_precision(options.dtype, options.model, adapter=any(ref.rank for ref in adapters)),
        max_model_len=max(needed, min(longest, options.context + 1) if options.tasks else 0),
        lora_rank=max((ref.rank for ref in adapters), default=0),
        tensor_parallel_size=options.tensor_parallel_size,
        memory_fraction=options.memory_fraction,
        kv_cache_gib=options.kv_cache_gib,
        seed=options.seed,
    )


def measure(
    options: ForgettingOptions,
    adapters: Sequence[AdapterRef],
    engine: ScoringEngine,
    dtype: str,
    prompts: TaskPrompts | None,
    tasks: Tasks | None,
    console: Console,
) -> list[PolicyResult]:
    """Measure the base model, before any full model replaces it in the engine, and each adapter by itself."""
    from evals.forgetting.divergence import check_scoring, divergence, sample_base
    from evals.forgetting.table import PolicyResult

    samples = None
    policies = []
    for ref in (None, *adapters):
        label, sha256 = (ref.key, ref.sha256) if ref else (BASE, None)
        gap, found = None, None
        with console.status(escape(label)) as status:
            if ref is not None:
                engine.load_adapter(ref)
            if prompts is not None:
                gap = check_scoring(engine, prompts.prompts, prompts.sampling, ref, dtype, options.seed)
                if ref is None:
                    samples = sample_base(engine, prompts.prompts, prompts.sampling, options.seed)
                elif samples is not None:
                    found = divergence(engine, samples, ref)
            scores = tasks.score(engine, ref, options.limit, partial(show, status, label)) if tasks else ()
            if ref is not None:
                engine.unload_adapter(ref)
        policies.append(PolicyResult(label=label, sha256=sha256, scores=scores, divergence=found, scoring_gap=gap))
    return policies


def show(status: Status, label: str, done: int, total: int) -> None:
    status.update(f"{escape(label)}: {done:,} of {total:,} continuations scored")


if __name__ == "__main__":
    sys.exit(app())
