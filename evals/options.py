"""The options of `python -m evals`, and all checks of them that do without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from datafiles.formats import check_file
from evals.command import check_output
from evals.partial_results import PartialResults
from evals.policies import check_adapter
from evals.protocol.base_commit import revision_to_read
from evals.suites import GENERATOR, Suite, check_suite_files, columns_in, find_suite, sampling_of, suite_hub_items
from rollout.config import ColumnsConfig, ModelConfig, PromptConfig
from rollout.files.durable import check_writable
from rollout.frames import refuse_spelt_newline
from rollout.hub import HubItem
from rollout.models import check_files, hub_items

NO_COLUMN = "no suite is a file with such a column"
GREEDY = "at temperature 0 the likeliest token is taken; give --temperature too"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The options of an evaluation. None means the suite's own protocol."""

    model: str
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    adapters: tuple[str, ...] = ()
    """As given to `--adapter`: `[NAME=]DIR` each."""
    base: bool = True
    """Whether the base model is measured too."""
    suites: tuple[str, ...]
    problem: str | None = None
    """The column of the problem, like `answer` below, in suites that are files, if it is not the project's default."""
    answer: str | None = None
    data_dir: str | None = None
    train_data: str | None = None
    limit: int | None = None
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float = 0.0
    max_tokens: int | None = None
    template: str = "auto"
    frame: str | None = None
    instruction: str | None = None
    """The sentence after the problem; empty for none."""
    seed: int = 0
    output: Path
    records: bool = False
    overwrite: bool = False
    batch: int = 256
    """Completions sampled between saves."""
    workers: int = 2
    timeout_s: float = 5.0
    tensor_parallel_size: int = 1
    memory_fraction: float = 0.9
    kv_cache_gib: float = 2.0
    max_num_seqs: int = 512

    @property
    def columns(self) -> ColumnsConfig:
        return ColumnsConfig(problem=self.problem, answer=self.answer)


def find_suites(names: tuple[str, ...]) -> list[Suite]:
    """The suites of these names. Raises `ValueError` for an unknown or repeated name, or if there is none."""
    if not names:
        raise ValueError("--suite names no suite")
    suites = [find_suite(name) for name in names]
    twice = {suite.name for suite in suites if [s.name for s in suites].count(suite.name) > 1}
    if twice:
        raise ValueError(f"--suite names {', '.join(sorted(twice))} more than once")
    return suites


def refuse_idle(options: EvalOptions) -> None:
    """Raise `ValueError` for an option that was given but has no effect in combination with the others."""
    suites = [find_suite(name) for name in options.suites]
    rates = {sampling_of(suite, n=options.samples, temperature=options.temperature).temperature for suite in suites}
    no_file = all(suite.source in (GENERATOR, "jsonl") for suite in suites)
    is_here = not hub_items(ModelConfig(name=options.model, revision=options.revision), "--model")
    files = [one for one in suites if one.source == "jsonl" and options.columns != ColumnsConfig()]
    found = [columns_in(one.file, options.columns, f"suite {one.name}") for one in files]
    for option, value, idle, why in (
        ("--problem", options.problem, not any(one.problem for one in found), NO_COLUMN),
        ("--answer", options.answer, not any(one.answer for one in found), NO_COLUMN),
        ("--data-dir", options.data_dir, no_file, f"{', '.join(options.suites)} is not read from a directory"),
        ("--top-p", options.top_p, rates == {0}, GREEDY),
        ("--top-k", options.top_k, rates == {0}, GREEDY),
        ("--min-p", options.min_p or None, rates == {0}, GREEDY),
        ("--revision", options.revision, is_here, f"--model {options.model} is on this machine, not read from the hub"),
    ):
        if value is not None and idle:
            raise ValueError(f"{option} is {value}, and has no effect: {why}")


def samples_path(output: Path) -> Path:
    return output.with_suffix(".samples.jsonl.gz")


def check_place(options: EvalOptions) -> list[str]:
    """Messages about files that will be replaced. Raises `ValueError` if the output may not be written there."""
    if options.output.is_dir():
        raise ValueError(f"--output: {options.output} is a directory; give a file in it")
    check_writable(options.output.parent, "--output")
    companions = [options.output.with_suffix(".md"), *([samples_path(options.output)] if options.records else [])]
    unfinished = PartialResults(options.output, {}).is_begun
    return check_output(options.output, overwrite=options.overwrite, companions=companions, unfinished=unfinished)


def check_quickly(options: EvalOptions) -> None:
    """Raise `ValueError` or `FileNotFoundError` for all errors that can be found without loading anything."""
    suites = find_suites(options.suites)
    refuse_idle(options)
    check_place(options)
    check_files(options.model, "--model")
    for adapter in options.adapters:
        check_adapter(adapter)
    if not options.base and not options.adapters:
        raise ValueError("nothing to measure: --no-base without an --adapter")
    for suite in suites:
        check_suite_files(suite, options.data_dir, "--data-dir")
        sampling_of(suite, n=options.samples, temperature=options.temperature)
    if options.train_data is not None:
        check_file(Path(options.train_data), "--train-data")
    check_prompt(options)


def check_prompt(options: EvalOptions) -> None:
    """Raise `ValueError` for an unknown template, or a frame without a placeholder for the problem."""
    for option, text in (("--frame", options.frame), ("--instruction", options.instruction)):
        refuse_spelt_newline(option, text)
    template = options.template
    if template == "auto":
        template = "plain" if options.frame is None else "frame"
    try:
        PromptConfig(template=template, frame=options.frame)
    except ValidationError as error:
        message = str(error.errors()[0]["ctx"]["error"])
        raise ValueError(message.replace("template: frame", "template frame").replace("prompt.", "--")) from error


def wanted_of_hub(options: EvalOptions) -> list[HubItem]:
    """Everything that an evaluation reads from the hub: the model and the suites."""
    revision = revision_to_read(options.model, options.revision, options.adapters)
    items = hub_items(ModelConfig(name=options.model, revision=revision), "--model")
    for suite in find_suites(options.suites):
        items += suite_hub_items(suite, options.data_dir, "--suite", "give --data-dir DIR")
    return items
