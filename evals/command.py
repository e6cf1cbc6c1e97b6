"""Asked → measured, shown and written: the whole evaluation, in the order in which it can fail cheaply."""

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
from transformers import AutoConfig, AutoTokenizer

from evals.contamination import Contamination, contamination
from evals.contenders import BASE_MODEL, Contender, find_contenders
from evals.evaluate import Batch, Exam, batches_of, sample, unfinished
from evals.exams import Asked, exam_of, find_suites
from evals.launch import Launch
from evals.ledger import Ledger
from evals.results import FORMAT, SuiteResult, describe, package_versions, result_of, write_samples
from evals.scoring.outcomes import Outcome
from evals.suites import ANSWER_FORMS
from evals.tables import markdown_of, percent, print_result
from rewards import Grader, RewardConfig
from rollout.config import DataConfig
from rollout.durable import write_synced
from rollout.engine import EngineSettings
from rollout.models import EMBEDDED, locate_model
from rollout.prompts.problems import load_problems

StartEngine = Callable[[EngineSettings], Any]


def run(asked: Asked, launch: Launch, console: Console, start_engine: StartEngine) -> None:
    """Raises `ValueError`, `FileNotFoundError` or `OSError` for what cannot be measured, before weights are loaded
    where that can be known."""
    start = time.monotonic()
    suites = find_suites(asked.suites)
    if asked.output.exists() and not asked.overwrite:
        raise ValueError(f"--output: {asked.output} is there already; --overwrite replaces it")
    model = locate_model(asked.model)
    tokenizer = AutoTokenizer.from_pretrained(model, revision=asked.revision)
    facts: Any = AutoConfig.from_pretrained(model, revision=asked.revision)
    text = facts.get_text_config()
    contenders = [
        *([BASE_MODEL] if asked.base else []),
        *find_contenders(asked.adapters, asked.model, text),
    ]
    if not contenders:
        raise ValueError("nothing to measure: --no-base without an --adapter")
    exams = [exam_of(asked, suite, tokenizer, text.max_position_embeddings) for suite in suites]
    shared = overlaps(asked, exams)
    remarks = [f"{contender.label}: {remark}" for contender in contenders for remark in contender.remarks]
    for warning in (*remarks, *(found.describe() for found in shared.values() if found)):
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    settings = settings_of(asked, exams, contenders)
    ledger = Ledger(asked.output, settings, launch.rank)
    if launch.is_main:
        ledger.begin(overwrite=asked.overwrite)
    launch.barrier()
    ledger.read()
    launch.barrier()  # all deal out the same work: nobody adds to the ledger before everybody has read it
    with Grader.from_config(grading_of(asked)) as grader:
        answer(asked, exams, contenders, grader, ledger, launch, console, start_engine)
        if not launch.is_main:
            return
        ledger.read()
        results = [result_of(exam, contenders, ledger, grader, shared.get(exam.suite.name)) for exam in exams]
    facts_of_run = {
        "format": FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
        "model": {**settings["model"], "commit": getattr(facts, "_commit_hash", None)},
        "settings": {key: value for key, value in settings.items() if key not in ("model", "suites")},
        "versions": package_versions(),
        "remarks": remarks,
    }
    write(asked, facts_of_run, results, exams, contenders, ledger)
    show(asked, results, console)


def grading_of(asked: Asked) -> RewardConfig:
    return RewardConfig(workers=asked.workers, timeout_s=asked.timeout_s, answer_forms=ANSWER_FORMS)


def settings_of(asked: Asked, exams: Sequence[Exam], contenders: Sequence[Contender]) -> dict[str, Any]:
    """Everything the numbers depend on: what an interrupted evaluation must go on with."""
    dtype = asked.dtype
    if dtype == "auto":
        dtype = "float32" if asked.model == EMBEDDED else "bfloat16"
    return {
        "model": {"name": asked.model, "revision": asked.revision, "dtype": dtype},
        "contenders": {one.label: one.ref.sha256 if one.ref else None for one in contenders},
        "suites": {exam.suite.name: describe(exam) for exam in exams},
        "seed": asked.seed,
        "batch": asked.batch,
        "tensor_parallel_size": asked.tensor_parallel_size,
        "timeout_s": asked.timeout_s,
    }


def overlaps(asked: Asked, exams: Sequence[Exam]) -> dict[str, Contamination]:
    """What `--train-data` shares with each suite. The generator's parts are disjoint, and its sums have no words."""
    if asked.train_data is None:
        return {}
    training = load_problems(DataConfig(source="jsonl", path=asked.train_data), split="train", seed=0).problems
    texts = {
        exam.suite.name: [prompt.problem for prompt in exam.prompts]
        for exam in exams
        if exam.suite.source != "arithmetic"
    }
    return {found.suite: found for found in contamination(training, texts)}


def answer(
    asked: Asked,
    exams: Sequence[Exam],
    contenders: Sequence[Contender],
    grader: Grader,
    ledger: Ledger,
    launch: Launch,
    console: Console,
    start_engine: StartEngine,
) -> None:
    """Sample what is not in the ledger; every process its share, and none returns before all have done theirs.

    No engine is started when nothing is left.
    """
    everything = batches_of(exams, contenders, asked.batch)
    pending = unfinished(everything, ledger)
    count = sum(len(batch.prompts) for batch in everything)
    left = sum(len(batch.prompts) for batch in pending)
    if left < count:
        console.print(f"{count - left:,} of {count:,} problems are finished already, in {escape(str(ledger.path))}")
    with ExitStack() as stack:
        if mine := pending[launch.rank :: launch.count]:
            with console.status("starting vLLM"):
                settings = engine_settings(asked, ledger.settings["model"]["dtype"], exams, contenders, launch)
                engine = stack.enter_context(closing(start_engine(settings)))
            for contender in contenders:
                if contender.ref is not None:
                    engine.load_adapter(contender.ref)
            with progress_bar(mine, console) as advance:
                sample(mine, engine, grader, ledger, asked.seed, advance)
        launch.barrier()  # before the engine is closed: it takes the process group with it


def engine_settings(
    asked: Asked, dtype: Any, exams: Sequence[Exam], contenders: Sequence[Contender], launch: Launch
) -> EngineSettings:
    """One engine for all contenders."""
    import torch

    adapters = [contender.ref for contender in contenders if contender.ref is not None]
    longest = max(len(one.token_ids) + exam.sampling.max_tokens for exam in exams for one in exam.prompts)
    return EngineSettings(
        model=locate_model(asked.model),
        revision=asked.revision,
        dtype=dtype,
        max_model_len=longest,
        lora_rank=max((ref.rank for ref in adapters), default=0),
        # On a CPU they take turns in one slot: only there our arithmetic serves, which is that of training. A batch is
        # one contender's, and bringing another's adapter back takes milliseconds.
        max_loras=max(1, len(adapters)) if torch.cuda.is_available() else 1,
        max_num_seqs=asked.max_num_seqs,
        kv_cache_gib=asked.kv_cache_gib,
        memory_fraction=asked.memory_fraction,
        tensor_parallel_size=asked.tensor_parallel_size,
        seed=asked.seed,
        ranks=launch.count,
    )


@contextmanager
def progress_bar(batches: Sequence[Batch], console: Console) -> Iterator[Callable[[Batch, list[Outcome]], None]]:
    """A bar over the problems; where the output is no terminal, a line for each batch."""
    right: dict[tuple[str, str], list[bool]] = {}
    done, total = 0, sum(len(batch.prompts) for batch in batches)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # rich's own estimate looks back half a minute, and a batch may take longer.
    remaining = TextColumn("{task.fields[left]}")
    start = time.monotonic()
    with Progress(*columns, remaining, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("sampling", total=total, left="")

        def advance(batch: Batch, outcomes: list[Outcome]) -> None:
            nonlocal done
            done += len(outcomes)
            name = (batch.exam.suite.name, batch.contender.label)
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
    asked: Asked,
    facts: dict[str, Any],
    results: Sequence[SuiteResult],
    exams: Sequence[Exam],
    contenders: Sequence[Contender],
    ledger: Ledger,
) -> None:
    """The JSON last: where it is, everything is."""
    if asked.records:
        write_samples(samples_path(asked.output), exams, contenders, ledger)
    model = facts["model"]
    title = f"# {model['name']}, {model['dtype']}\n\n{facts['when']}, seed {asked.seed}\n"
    remarks = "".join(f"- warning: {remark}\n" for remark in facts["remarks"])
    sections = [title, remarks, *(markdown_of(result) for result in results)]
    write_synced(asked.output.with_suffix(".md"), "\n".join(part for part in sections if part))
    suites = [result.to_json() for result in results]
    write_synced(asked.output, json.dumps({**facts, "suites": suites}, indent=2, ensure_ascii=False) + "\n")
    ledger.remove()


def samples_path(output: Path) -> Path:
    return output.with_suffix(".samples.jsonl.gz")


def show(asked: Asked, results: Sequence[SuiteResult], console: Console) -> None:
    for result in results:
        print_result(result, console)
    files = [asked.output, asked.output.with_suffix(".md"), *([samples_path(asked.output)] if asked.records else [])]
    console.print("\n" + "  ".join(escape(str(path)) for path in files), soft_wrap=True)
