"""Options → scores, printed and written: a whole evaluation, in which the cheapest checks come first."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evals.contamination import Contamination, contamination
from evals.launch.group import Launch
from evals.options import EvalOptions, check_place, check_quickly, find_suites, samples_path
from evals.partial_results import PartialResults
from evals.policies import BASE_MODEL, Policy, find_policies
from evals.prepare import PLAIN_TEMPLATE, PreparedSuite, prepare_suite
from evals.protocol.base_commit import commit_to_read, other_base
from evals.protocol.training_protocol import TrainingProtocol, agreed, model_overridden, overridden
from evals.results import FORMAT, SuiteResult, describe, result_of, write_samples
from evals.sampling import Batch, batches_of, sample, unfinished
from evals.scoring.outcomes import Outcome
from evals.scoring.versions import package_versions
from evals.suites import ANSWER_FORMS, GENERATOR
from evals.tables import markdown_of, percent, print_result
from rewards import Grader, RewardConfig
from rollout.config import DataConfig
from rollout.engine import EngineSettings
from rollout.files.durable import write_synced
from rollout.files.weights import weights_in
from rollout.models import end_tokens, locate_model, read_model_config, read_tokenizer
from rollout.prompts.problems import load_problems
from rollout.prompts.renderer import Renderer
from rollout.servable import check_servable, check_vocabulary, context_length, serving_precision

StartEngine = Callable[[EngineSettings], Any]


def evaluate(options: EvalOptions, launch: Launch, console: Console, start_engine: StartEngine) -> None:
    """Run an evaluation. Raises `ValueError`, `FileNotFoundError` or `OSError` if something cannot be measured, if
    possible before weights are loaded."""
    start = time.monotonic()
    if launch.count > 1 and options.tensor_parallel_size > 1:
        raise ValueError(
            f"--tensor-parallel-size is {options.tensor_parallel_size} with {launch.count} processes, each with a "
            "model of its own: start one process, or set it to 1"
        )
    check_quickly(options)
    wanted = find_suites(options.suites)
    for note in check_place(options):
        console.print(escape(note), soft_wrap=True)
    model = locate_model(options.model)
    commit = commit_to_read(options.model, options.revision, options.adapters)
    if commit is not None:
        console.print(f"base model {options.model} at commit {commit}", soft_wrap=True, markup=False)
    tokenizer = read_tokenizer(model, commit)
    model_config = read_model_config(model, commit, f"--model {options.model}")
    policies = contenders(options, model_config, console)
    adapted = any(policy.ref is not None for policy in policies)
    check_servable(model_config, f"--model {options.model}", adapter=adapted)
    trained = agreed(options.model, policies, options.suites)
    if trained is not None:
        console.print(escape(trained.describe()), soft_wrap=True)
        tokenizer.chat_template = trained.chat_template or tokenizer.chat_template
    context = context_length(model_config)
    suites = [prepare_suite(options, suite, tokenizer, context, trained) for suite in wanted]
    asked = (prompt.token_ids for suite in suites for prompt in suite.prompts)
    check_vocabulary(asked, model_config, tokenizer, f"--model {options.model}")
    shared = overlaps(options, suites)
    remarks = [f"{policy.label}: {remark}" for policy in policies for remark in policy.remarks]
    remarks += other_base(options.model, options.revision, commit, options.adapters)
    ends = end_tokens(model, commit, model_config, tokenizer)
    if message := Renderer(tokenizer, suites[0].prompt).endless_turn(ends, suites[0].sampling.stop):
        remarks.append(f"{message}; --template {PLAIN_TEMPLATE} asks as a base model is asked")
    if trained is not None:
        remarks += [*overridden(trained, suites[0].prompt), *model_overridden(options.model, trained)]
    for warning in (*remarks, *(found.describe() for found in shared.values() if found)):
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    settings = settings_of(options, suites, policies, commit)
    with closing(PartialResults(options.output, settings, launch.rank)) as partial:
        if launch.is_main:
            partial.begin(overwrite=options.overwrite)
        launch.barrier()
        partial.read()
        launch.barrier()  # every rank reads the same state to divide the work, before any rank adds to it
        with Grader.from_config(grading_of(options, trained), trained.tasks if trained else ()) as grader:
            sample_missing(options, suites, policies, grader, partial, launch, console, start_engine)
            if not launch.is_main:
                return
            partial.read()
            results = [
                result_of(prepared, policies, partial, grader, shared.get(prepared.suite.name)) for prepared in suites
            ]
        write(options, header_of(settings, start, remarks), results, suites, policies, partial)
    print_results(options, results, console)


def header_of(settings: dict[str, Any], start: float, remarks: Sequence[str]) -> dict[str, Any]:
    """The report's entries about the evaluation as a whole. `start` is `time.monotonic()` at its beginning."""
    return {
        "format": FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
        "model": settings["model"],
        "settings": {key: value for key, value in settings.items() if key not in ("model", "suites")},
        "versions": package_versions(),
        "remarks": remarks,
    }


def contenders(options: EvalOptions, model_config: Any, console: Console) -> list[Policy]:
    """All policies to measure. Prints which version of a run was chosen, and why."""
    adapters = find_policies(options.adapters, options.model, model_config)
    for policy in adapters:
        if policy.why:
            console.print(escape(policy.why), soft_wrap=True)
    return [*([BASE_MODEL] if options.base else []), *adapters]


def grading_of(options: EvalOptions, trained: TrainingProtocol | None) -> RewardConfig:
    forms = trained.answer_forms if trained is not None else ANSWER_FORMS
    return RewardConfig(workers=options.workers, timeout_s=options.timeout_s, answer_forms=forms)


def settings_of(
    options: EvalOptions, suites: Sequence[PreparedSuite], policies: Sequence[Policy], commit: str | None
) -> dict[str, Any]:
    """Everything that the numbers depend on, which must stay the same when an interrupted evaluation is continued.
    `commit` is the base model's commit on the hub."""
    dtype = serving_precision(options.dtype, options.model, adapter=any(policy.ref is not None for policy in policies))
    return {
        "model": {
            "name": options.model,
            "revision": options.revision,
            "dtype": dtype,
            "commit": commit,
            "weights": weights_in(Path(locate_model(options.model))),
        },
        "contenders": {one.label: one.ref.sha256 if one.ref else None for one in policies},
        "suites": {prepared.suite.name: describe(prepared) for prepared in suites},
        "seed": options.seed,
        "batch": options.batch,
        "tensor_parallel_size": options.tensor_parallel_size,
        "timeout_s": options.timeout_s,
    }


def overlaps(options: EvalOptions, suites: Sequence[PreparedSuite]) -> dict[str, Contamination]:
    """The overlap of `--train-data` with each suite, except generated ones: their splits are disjoint, and sums have no
    words."""
    if options.train_data is None:
        return {}
    data = DataConfig(source="jsonl", path=options.train_data)
    training = load_problems(data, split="train", seed=0, key="--train-data").problems
    texts = {
        prepared.suite.name: [prompt.problem for prompt in prepared.prompts]
        for prepared in suites
        if prepared.suite.source != GENERATOR
    }
    return {found.suite: found for found in contamination(training, texts)}


def sample_missing(
    options: EvalOptions,
    suites: Sequence[PreparedSuite],
    policies: Sequence[Policy],
    grader: Grader,
    partial: PartialResults,
    launch: Launch,
    console: Console,
    start_engine: StartEngine,
) -> None:
    """Sample what is missing from the partial results. Each process takes its share and returns when all are done.

    If nothing is missing, no engine is started. Otherwise every process starts one, even without a batch for it,
    because an engine is ready only when all are.
    """
    everything = batches_of(suites, policies, options.batch)
    pending = unfinished(everything, partial)
    count = sum(len(batch.prompts) for batch in everything)
    left = sum(len(batch.prompts) for batch in pending)
    if left < count:
        console.print(f"{count - left:,} of {count:,} problems are finished already, in {escape(str(partial.path))}")
    with ExitStack() as stack:
        if pending:
            mine = pending[launch.rank :: launch.count]
            with console.status("starting vLLM"):
                settings = engine_settings(options, partial.settings["model"], suites, policies, launch)
                engine = stack.enter_context(closing(start_engine(settings)))
            for policy in policies:
                if policy.ref is not None:
                    engine.load_adapter(policy.ref)
            with progress_bar(mine, console) as advance:
                sample(mine, engine, grader, partial, options.seed, advance, completions_at_once(options))
        launch.barrier()  # before the engine is closed, which also destroys the process group


def completions_at_once(options: EvalOptions) -> int:
    """The next batch starts when fewer completions than this are being sampled: on a GPU, fewer than it samples at
    once. On a CPU it is 1: one batch at a time, so that an interrupted evaluation ends bit for bit like any other."""
    import torch

    return options.max_num_seqs if torch.cuda.is_available() else 1


def engine_settings(
    options: EvalOptions,
    base: dict[str, Any],
    suites: Sequence[PreparedSuite],
    policies: Sequence[Policy],
    launch: Launch,
) -> EngineSettings:
    """Settings of the one engine that serves all policies. `base`: the entry `model` of `settings_of`."""
    import torch

    adapters = [policy.ref for policy in policies if policy.ref is not None]
    longest = max(len(one.token_ids) + prepared.sampling.max_tokens for prepared in suites for one in prepared.prompts)
    return EngineSettings(
        model=locate_model(options.model),
        revision=base["commit"],
        dtype=base["dtype"],
        max_model_len=longest,
        lora_rank=max((ref.rank for ref in adapters), default=0),
        # On a CPU adapters take turns in one slot: only with one slot does the engine use our LoRA arithmetic, the same
        # as in training. A batch has one policy, and swapping adapters takes milliseconds.
        max_loras=max(1, len(adapters)) if torch.cuda.is_available() else 1,
        max_num_seqs=options.max_num_seqs,
        kv_cache_gib=options.kv_cache_gib,
        memory_fraction=options.memory_fraction,
        tensor_parallel_size=options.tensor_parallel_size,
        seed=options.seed,
        ranks=launch.count,
    )


@contextmanager
def progress_bar(batches: Sequence[Batch], console: Console) -> Iterator[Callable[[Batch, list[Outcome]], None]]:
    """Show a progress bar over the problems, or a line per batch if the output is not a terminal."""
    right: dict[tuple[str, str], list[bool]] = {}
    done, total = 0, sum(len(batch.prompts) for batch in batches)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # rich's own estimate looks back only half a minute, and a batch may take longer.
    remaining = TextColumn("{task.fields[left]}")
    start = time.monotonic()
    with Progress(*columns, remaining, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("sampling", total=total, left="")

        def advance(batch: Batch, outcomes: list[Outcome]) -> None:
            nonlocal done
            done += len(outcomes)
            name = (batch.prepared.suite.name, batch.policy.label)
            so_far = right.setdefault(name, [])
            so_far += [one.correct for outcome in outcomes for one in outcome.samples]
            text = f"{name[0]} · {name[1]}: {percent(sum(so_far) / len(so_far))} so far"
            left_s = (time.monotonic() - start) * (total - done) / done
            left = f"{timedelta(seconds=round(left_s))} left"
            progress.update(task, advance=len(outcomes), description=escape(text), left=left)
            if not console.is_terminal:
                console.print(f"{done:>6,} of {total:,} problems  {escape(text)}, {left}")

        yield advance


def write(
    options: EvalOptions,
    header: dict[str, Any],
    results: Sequence[SuiteResult],
    suites: Sequence[PreparedSuite],
    policies: Sequence[Policy],
    partial: PartialResults,
) -> None:
    """Write the samples, the tables and then the JSON report: if that exists, everything does."""
    if options.records:
        write_samples(samples_path(options.output), suites, policies, partial)
    model = header["model"]
    at = f", commit {model['commit']}" if model["commit"] else ""
    title = f"# {model['name']}, {model['dtype']}{at}\n\n{header['when']}, seed {options.seed}\n"
    remarks = "".join(f"- warning: {remark}\n" for remark in header["remarks"])
    sections = [title, remarks, *(markdown_of(result) for result in results)]
    write_synced(options.output.with_suffix(".md"), "\n".join(part for part in sections if part))
    report = {**header, "suites": [result.to_json() for result in results]}
    write_synced(options.output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    partial.remove()


def print_results(options: EvalOptions, results: Sequence[SuiteResult], console: Console) -> None:
    for result in results:
        print_result(result, console)
    files = [
        options.output,
        options.output.with_suffix(".md"),
        *([samples_path(options.output)] if options.records else []),
    ]
    console.print("\n" + "  ".join(escape(str(path)) for path in files), soft_wrap=True)
