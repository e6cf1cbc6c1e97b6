"""Suite → prepared suite: its problems rendered, and its protocol adapted to this model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from evals.options import EvalOptions
from evals.protocol.training_protocol import TrainingProtocol
from evals.suites import (
    ANSWER_FORMS,
    ASKED_OF_EMBEDDED,
    GENERATOR,
    NO_COLUMNS,
    Suite,
    load_suite,
    origin_of,
    sampling_of,
)
from rewards.config import AnswerForm
from rollout.config import PromptConfig, SamplingConfig
from rollout.prompts.problems import turns_left_out
from rollout.prompts.renderer import Renderer
from rollout.types import Prompt

PLAIN_TEMPLATE = "problem_solution"
# Tokenizers of base models often include the chat template of their instruct siblings, which the base models ignore.
SAYS_BASE = re.compile(r"(?:^|[-_.])base(?:$|[-_.])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedSuite:
    """A suite, ready to be sampled from one model."""

    suite: Suite
    origin: str
    """Where the problems were read from, for messages and reports."""
    prompts: tuple[Prompt, ...]
    prompt: PromptConfig
    sampling: SamplingConfig
    """The protocol's sampling, with the template's stop strings."""
    answer_forms: tuple[AnswerForm, ...] = ANSWER_FORMS
    """Where to look for the answer, in this order."""
    remarks: tuple[str, ...] = ()


def prompt_of(
    options: EvalOptions, suite: Suite, tokenizer: PreTrainedTokenizerBase, trained: TrainingProtocol | None = None
) -> PromptConfig:
    """The prompt of the training, if known; otherwise the model's own chat template, unless it has none or its name
    says that it is a base model. Options override either."""
    if trained is not None:
        return trained.asked(options.template, options.frame, options.instruction)
    template = options.template
    if template == "auto" and options.frame is not None:
        template = "frame"
    elif template == "auto":
        chats = tokenizer.chat_template and not SAYS_BASE.search(Path(options.model).name)
        template = "chat" if chats else PLAIN_TEMPLATE
    instruction = suite.instruction if options.instruction is None else options.instruction or None
    return PromptConfig(template=template, frame=options.frame, instruction=instruction)


def prepare_suite(
    options: EvalOptions,
    suite: Suite,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    trained: TrainingProtocol | None = None,
) -> PreparedSuite:
    """Prepare a suite with the settings of the training, if known, or else by its own protocol.

    Raises `ValueError` if a problem leaves no room for an answer in the model's `context` tokens.
    """
    prompt = prompt_of(options, suite, tokenizer, trained)
    renderer = Renderer(tokenizer, prompt)
    generated = trained.generated if trained is not None and trained.generated else ASKED_OF_EMBEDDED
    columns = trained.columns if trained is not None else NO_COLUMNS
    columns = columns.model_copy(update={role: name for role, name in options.columns if name is not None})
    loaded = load_suite(suite, options.data_dir, options.limit, generated, columns=columns)
    prompts = tuple(renderer.render_all(loaded.problems))
    # The protocol's max_tokens is meant for sums, so a run on other tasks brings its own.
    longest = trained.max_tokens if trained is not None and trained.tasks and suite.source == GENERATOR else None
    sampling = sampling_of(
        suite,
        n=options.samples,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        max_tokens=options.max_tokens or longest,
    )
    remarks = [*loaded.dropped.lines(" rows"), *turns_left_out(loaded.problems)]
    wanted = suite.size if suite.source != GENERATOR else None  # a small task may have fewer problems
    if wanted is not None and options.limit is None and len(prompts) != wanted:
        remarks.append(f"{len(prompts):,} problems were read, and the suite has {wanted:,}: damaged or different data")
    stop = (*renderer.stop, *(trained.stop if trained is not None else ()))
    room = context - max(len(one.token_ids) for one in prompts)
    if room < 1:
        raise ValueError(f"the longest problem of {suite.name} fills the model's context of {context:,} tokens")
    if room < sampling.max_tokens:
        remarks.append(
            f"completions end at {room:,} tokens, not {sampling.max_tokens:,}: the model's context is {context:,}"
        )
    return PreparedSuite(
        suite=suite,
        origin=origin_of(suite, options.data_dir, generated),
        prompts=prompts,
        prompt=prompt,
        sampling=sampling.model_copy(
            update={"stop": stop, "max_tokens": min(room, sampling.max_tokens)},
        ),
        answer_forms=trained.answer_forms if trained else ANSWER_FORMS,
        remarks=tuple(remarks),
    )
