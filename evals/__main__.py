"""The command: `python -m evals --model M [--adapter DIR …] --suite gsm8k,math500 --output FILE.json`.

Imports nothing heavy until the arguments have been checked.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from evals.command import (
    exit_explained,
    exit_with_error,
    lasting_console,
    print_loading,
    quiet_libraries,
    settle_torch,
)
from evals.launch.group import join_launch, leave_launch
from evals.launch.presence import lost_rank, presence
from evals.options import EvalOptions, check_quickly, wanted_of_hub
from evals.partial_results import PartialResults
from evals.suites import SUITES
from rewards.command import Command, Workers, exit_code
from rollout.config import LARGEST_SEED
from rollout.engine import EngineError, NanError
from rollout.frames import FRAMES
from rollout.hub import check_hub, stay_offline_without
from rollout.loading import loading
from rollout.servable import check_cards, check_semaphores, serving_precision
from rollout.stopping import Stopped, StopRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Suite = Annotated[list[str], typer.Option(help=f"Comma-separated list of {', '.join(SUITES)}, or files of problems.")]
Output = Annotated[
    Path, typer.Option(metavar="FILE.json", help="JSON file to write; the tables go next to it as Markdown.")
]
Adapter = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]DIR",
        help="A published version, a PEFT directory, or a run (its best version, otherwise its latest); may be "
        "repeated.",
    ),
]
Problem = Annotated[
    str | None,
    typer.Option(help="Column of the question, for suites that are files. Default: the adapter's run's, or problem."),
]
Answer = Annotated[
    str | None,
    typer.Option(help="Likewise of the reference answer; a.b is field b of mapping a."),
]
DataDir = Annotated[str | None, typer.Option(help="Directory with the suites' .jsonl files, read instead of the hub.")]
TrainData = Annotated[str | None, typer.Option(help="Training problems: warn if a suite contains any of them.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0, max=2, help="Sampling temperature; 0 is greedy. Default: the suite's, or 0.6 for several samples."
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1,
        help="Sample only from the most likely tokens that together hold this probability. "
        "Default: the suite's, or 0.95 for several samples.",
    ),
]
TopK = Annotated[
    int | None, typer.Option(min=1, help="Sample only from this many of the most likely tokens. Default: all.")
]
MinP = Annotated[
    float,
    typer.Option(min=0, max=1, help="Sample only from tokens at least this fraction as likely as the most likely one."),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Maximum length of a completion, in tokens. Default: the suite's.")
]
Template = Annotated[
    str,
    typer.Option(
        help=f"auto, chat, {', '.join(sorted(FRAMES))}. auto: the model's chat template, or problem_solution if it has "
        "none or its name contains base."
    ),
]


@app.command(cls=Command, epilog="Example: python -m evals --model embedded --suite held_out --output scores.json")
def main(
    model: Annotated[str, typer.Option(help="Base model: hub id, local directory, or `embedded`.")],
    suite: Suite,
    output: Output,
    adapter: Adapter = None,
    base: Annotated[bool, typer.Option(help="Also evaluate the base model.")] = True,
    problem: Problem = None,
    answer: Answer = None,
    data_dir: DataDir = None,
    train_data: TrainData = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Completions per problem. Default: the suite's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N problems of each suite.")] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = 0.0,
    max_tokens: MaxTokens = None,
    template: Template = "auto",
    frame: Annotated[str | None, typer.Option(help="Your own frame; `{problem}` stands for the problem.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Sentence added after the problem; '' for none. Default: the suite's.")
    ] = None,
    records: Annotated[bool, typer.Option("--records", help="Write every sample to FILE.samples.jsonl.gz.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output and start over.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seeds the sampling.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Completions sampled between saves.")] = 256,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the base model.")] = None,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"],
        typer.Option(help="auto: bfloat16, or float32 for `embedded` on a CPU."),
    ] = "auto",
    workers: Workers = 2,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=600, help="Time limit for one sample, in seconds.")] = 5.0,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="CUDA only: how many GPUs share the model.")] = 1,
    memory_fraction: Annotated[
        float, typer.Option(min=0.05, max=1, help="CUDA only: share of each GPU's memory to use.")
    ] = 0.9,
    kv_cache_gib: Annotated[float, typer.Option(min=0.05, help="CPU only: size of the KV cache, in GiB.")] = 2.0,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="How many sequences to sample at the same time.")] = 512,
) -> None:
    """Score a base model and its adapters on the same prompts, with one engine.

    Run the same command again to continue an interrupted evaluation. Under torchrun, processes share the batches.
    """
    options, stop = options_of(locals()), StopRequest()
    try:
        check(options)
        with stop.listening():
            start(options)
    except Stopped:
        exit_with_error(f"stopped; {how_to_continue(options)}", stop.exit_code)
    except EngineError as error:
        exit_unfinished(error, options)
    except RuntimeError as error:
        if (lost := lost_rank(error)) is None:
            raise
        exit_unfinished(lost, options)
    except (ValueError, OSError) as error:
        exit_refused(error, options)


def options_of(arguments: dict[str, Any]) -> EvalOptions:
    """The command line's arguments, by the names of `main`'s parameters, as options."""
    adapters = tuple(arguments["adapter"] or ())
    parts = [
        # A comma may be part of a file's name. Path.exists would raise an error for a list too long to be one.
        [names] if os.path.exists(names) else map(str.strip, names.split(","))  # noqa: PTH110
        for names in arguments["suite"]
    ]
    suites = tuple(name for part in parts for name in part if name)
    rest = {name: value for name, value in arguments.items() if name not in ("adapter", "suite")}
    return EvalOptions(adapters=adapters, suites=suites, **rest)


def exit_refused(error: ValueError | OSError, options: EvalOptions) -> NoReturn:
    """Exit with an error's message. Where there is nothing to correct, say how to continue if there are finished
    problems."""
    with contextlib.suppress(ValueError, OSError):
        if exit_code(error) == 1 and PartialResults(options.output, {}).is_begun:
            exit_unfinished(error, options)
    exit_explained(error)


def exit_unfinished(reason: object, options: EvalOptions) -> NoReturn:
    """Exit with a reason, and say how to continue, which helps unless the model computes NaN."""
    advice = "" if isinstance(reason, NanError) else f"\n{how_to_continue(options).capitalize()}."
    exit_with_error(f"{reason}{advice}", 1)


def how_to_continue(options: EvalOptions) -> str:
    """How to continue an evaluation that ended early. `--overwrite` would start it over."""
    anew = options.overwrite and PartialResults(options.output, {}).is_begun
    return f"run the same command {'without --overwrite ' if anew else ''}to continue"


def check(options: EvalOptions) -> None:
    """Find all errors that can be found quickly."""
    check_quickly(options)
    wanted = wanted_of_hub(options)
    stay_offline_without(wanted)
    check_hub(wanted)


def start(options: EvalOptions) -> None:
    """Evaluate in this process, which may be one of several that a launcher started."""
    print_loading("torch, transformers and vLLM")
    settle_torch()
    quiet_libraries()
    with loading():
        check_semaphores()
        check_cards()
        from evals.evaluate import evaluate
        from rollout.vllm import start_engine
    serving_precision(options.dtype, options.model, adapter=bool(options.adapters))

    launch = join_launch()
    try:
        with presence(launch.rank, launch.count, lambda: f"{how_to_continue(options).capitalize()}."):
            evaluate(options, launch, lasting_console(quiet=not launch.is_main), start_engine)
    finally:
        leave_launch(launch)


if __name__ == "__main__":
    sys.exit(app())
