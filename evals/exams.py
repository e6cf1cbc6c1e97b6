"""What was asked for → exams: each suite with its problems rendered, and what its protocol becomes on this model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from evals.evaluate import Exam
from evals.suites import Suite, find_suite, load_suite, origin_of, sampling_of
from rollout.config import PromptConfig
from rollout.prompts.renderer import Renderer

PLAIN_TEMPLATE = "problem_solution"
# Tokenizers of base models often bring the chat template of their instructed siblings, to which they do not listen.
SAYS_BASE = re.compile(r"(?:^|[-_.])base(?:$|[-_.])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command's arguments. None leaves a suite's own protocol."""

    model: str
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    adapters: tuple[str, ...] = ()
    """`[NAME=]DIR` each."""
    base: bool = True
    """Whether the base model is measured too."""
    suites: tuple[str, ...]
    data_dir: str | None = None
    train_data: str | None = None
    limit: int | None = None
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    template: str = "auto"
    frame: str | None = None
    instruction: str | None = None
    """Sentence after the problem; empty for none."""
    seed: int = 0
    output: Path
    records: bool = False
    overwrite: bool = False
    batch: int = 256
    """Completions sampled between two savings."""
    workers: int = 2
    timeout_s: float = 5.0
    tensor_parallel_size: int = 1
    memory_fraction: float = 0.9
    kv_cache_gib: float = 2.0
    max_num_seqs: int = 512


def find_suites(names: Sequence[str]) -> list[Suite]:
    """Raises `ValueError` for a name that is no suite, or is two, and for no name at all."""
    if not names:
        raise ValueError("--suite names no suite")
    suites = [find_suite(name) for name in names]
    twice = {suite.name for suite in suites if [s.name for s in suites].count(suite.name) > 1}
    if twice:
        raise ValueError(f"--suite names {', '.join(sorted(twice))} more than once")
    return suites


def prompt_of(asked: Asked, suite: Suite, tokenizer: PreTrainedTokenizerBase) -> PromptConfig:
    """The model's own template, unless it has none or its name says that it is a base model, or one was asked for."""
    template = asked.template
    if template == "auto" and asked.frame is not None:
        template = "frame"
    elif template == "auto":
        chats = tokenizer.chat_template and not SAYS_BASE.search(Path(asked.model).name)
        template = "chat" if chats else PLAIN_TEMPLATE
    instruction = suite.instruction if asked.instruction is None else asked.instruction or None
    return PromptConfig(template=template, frame=asked.frame, instruction=instruction)


def exam_of(asked: Asked, suite: Suite, tokenizer: PreTrainedTokenizerBase, context: int) -> Exam:
    """Raises `ValueError` when a problem leaves no room for an answer in the model's `context` tokens."""
    prompt = prompt_of(asked, suite, tokenizer)
    renderer = Renderer(tokenizer, prompt)
    loaded = load_suite(suite, asked.data_dir, asked.limit)
    prompts = tuple(renderer.render_all(loaded.problems))
    sampling = sampling_of(
        suite, n=asked.samples, temperature=asked.temperature, top_p=asked.top_p, max_tokens=asked.max_tokens
    )
    remarks = [
        f"dropped {count:,} rows: {reason} (for one, {loaded.examples[reason]})"
        for reason, count in loaded.dropped.items()
    ]
    if suite.size is not None and asked.limit is None and len(prompts) != suite.size:
        remarks.append(f"{len(prompts):,} problems were read of a suite of {suite.size:,}: damaged or different data")
    room = context - max(len(one.token_ids) for one in prompts)
    if room < 1:
        raise ValueError(f"the longest problem of {suite.name} fills the model's context of {context:,} tokens")
    if room < sampling.max_tokens:
        remarks.append(
            f"completions end at {room:,} tokens, not {sampling.max_tokens:,}: the model's context is {context:,}"
        )
    return Exam(
        suite=suite,
        origin=origin_of(suite, asked.data_dir),
        prompts=prompts,
        prompt=prompt,
        sampling=sampling.model_copy(
            update={"stop": renderer.stop, "max_tokens": min(room, sampling.max_tokens)},
        ),
        remarks=tuple(remarks),
    )
