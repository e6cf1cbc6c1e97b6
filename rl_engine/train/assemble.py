"""Configuration → a run ready to train: loads data, model and engines, in an order that makes failures cheap."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evals.suites import Suite
from rewards import Grader
from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.gap import gap_limits
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.state import restore_learner
from rl_engine.plan.card import sampler_line
from rl_engine.plan.lines import first_lines
from rl_engine.plan.memory import check_fits, memory_of_run
from rl_engine.policy.base_model import (
    LoadBase,
    check_attention,
    check_checkpointing,
    layout_of,
    load_causal_lm,
    load_meta_model,
    load_model_config,
    model_notes,
)
from rl_engine.policy.lora.adapter import check_adapter
from rl_engine.policy.lora.targets import match_targets
from rl_engine.run.checkpoint import RNG, Checkpoints, RunState, newest_on_all
from rl_engine.run.console import RunConsole
from rl_engine.run.memory import PhasePeaks, available
from rl_engine.run.origin.inputs import inputs_of
from rl_engine.run.output import begins
from rl_engine.run.records import Records, read_metrics
from rl_engine.run.resumption import check_length, check_resumable, config_hash, problems_digest
from rl_engine.sampling.collective import check_same
from rl_engine.sampling.data import TrainingData, cursor_of, digest_in_order, prepare
from rl_engine.sampling.past_versions import PastVersions
from rl_engine.sampling.placement import check_placement, start_queue
from rl_engine.sampling.publish import Publisher
from rl_engine.sampling.sampler import Sampler
from rl_engine.sampling.stream import RolloutStream
from rl_engine.train.loop import LiveRun
from rl_engine.train.resolve import resolve_eval_pieces
from rl_engine.train.suites import load_suites, overlap_notes
from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.engine import Engine
from rollout.models import check_every_weight, end_tokens, hub_items, is_wrapper, locate_model, read_tokenizer
from rollout.prompts.problems import tasks_of
from rollout.prompts.renderer import Renderer
from rollout.servable import (
    check_adaptable,
    check_positions,
    check_reloadable,
    check_servable,
    check_vocabulary,
    context_length,
)
from rollout.stopping import StopRequest
from rollout.types import Prompt

CANARY_PROMPTS = 2
PAD_ID = 0
"""Padding token. Any token will do where the mask is zero, and the tokenizer's own may have been added to the tokenizer
but not to the model."""


def samplings(config: Config, renderer: Renderer) -> tuple[SamplingConfig, SamplingConfig]:
    """Return the sampling settings for (training, evaluation), both with the template's stop strings."""
    stop = (*renderer.stop, *config.sampling.stop)
    training = config.sampling.model_copy(update={"stop": stop})
    evaluation = SamplingConfig(
        n=config.eval.n,
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        top_k=config.eval.top_k,
        min_p=config.eval.min_p,
        max_tokens=config.eval.max_tokens or config.sampling.max_tokens,
        stop=stop,
    )
    return training, evaluation


def context_needed(config: Config, suites: list[tuple[Suite, list[Prompt]]], sampling: SamplingConfig) -> int:
    """Tokens of the longest prompt plus the longest completion."""
    longest = max((len(prompt.token_ids) for _, prompts in suites for prompt in prompts), default=0)
    return max(config.longest_sequence, longest + sampling.max_tokens)


def check_context(config: Config, needed: int) -> None:
    """Raises `ConfigError` when the sampler cannot serve the model, or when prompts and completions exceed its context
    length."""
    model_config = load_model_config(config.model)
    name = f"model.name {config.model.name}"
    if config.method == "full" and is_wrapper(model_config):
        raise ConfigError(
            f"{name} is of type {model_config.model_type}, which is multimodal: only adapters of its language model "
            "can be trained, so use method=lora"
        )
    check_servable(model_config, name, adapter=config.method == "lora")
    if config.method == "full":
        check_reloadable(model_config, name)
    else:
        check_adaptable(model_config, match_targets(load_meta_model(config.model), config.lora.targets), "lora.targets")
    limit = context_length(model_config)
    if needed > limit:
        raise ConfigError(
            f"prompt and completion may take {needed} tokens, and {config.model.name} has a context of {limit}: "
            "lower data.max_prompt_tokens, sampling.max_tokens or eval.max_tokens"
        )
    check_positions(model_config, config.model.name, needed)


def console_of(config: Config, ranks: Ranks) -> RunConsole:
    plain = config.rewards.is_accuracy and not tasks_of(config.data)  # a task's scorer gives partial credit
    return RunConsole(quiet=not ranks.is_main, steps=config.train.steps, reward_is_accuracy=plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything a run needs except weights and engines."""

    renderer: Renderer
    data: TrainingData
    suites: list[tuple[Suite, list[Prompt]]]
    sampling: SamplingConfig
    eval_sampling: SamplingConfig
    context: int
    """Tokens that the longest prompt and its completion may take together."""


def prepare_run(
    config: Config, ranks: Ranks, grader: Grader, console: RunConsole, resume: bool, least_context: int = 0
) -> Prepared:
    """Check everything that can be checked without weights, and load the data.

    Training and dry runs both call this, so that both refuse the same things in the same words. Raises `ValueError`,
    `FileNotFoundError` or `OSError`.

    `least_context`: the minimum context length, in tokens, to build the sampler for, even if this configuration needs
    less.
    """
    check_same(ranks, inputs_of(config))
    check_fits(memory_of_run(config, ranks), available(ranks))
    layout_of(config, ranks.device)
    check_attention(config.learner.attention, "learner.attention")
    if config.learner.gradient_checkpointing:
        check_checkpointing(config.model, "learner.gradient_checkpointing")
    check_placement(config, ranks)
    if config.method == "lora":
        check_adapter(config.model, config.lora, config.seed, begins=begins(config, resume=resume))
    tokenizer = read_tokenizer(locate_model(config.model.name), config.model.revision)
    renderer = Renderer(tokenizer, config.prompt)
    sampling, eval_sampling = samplings(config, renderer)
    model_config = load_model_config(config.model)
    ends = end_tokens(locate_model(config.model.name), config.model.revision, model_config, tokenizer)
    with console.phase("reading and checking problems"):
        data = prepare(config, renderer, grader, ranks)
        suites, notes = load_suites(config, renderer, data.extra_columns)
        problems = [prompt.problem for _, prompts in suites for prompt in prompts]
        check_same(ranks, {"eval.suites": digest_in_order(problems)})
        notes += data.repetitions(config.train.max_problems_per_step or config.train.problems_per_step)
        notes += overlap_notes(data, suites) if ranks.is_main else []
    if (note := renderer.endless_turn(ends, sampling.stop)) is not None:
        notes.append(f"warning: {note}; give the token in sampling.stop, or another prompt.template")
    for line in [*model_notes(config.model), *notes]:
        console.note(line)
    context = max(least_context, context_needed(config, suites, eval_sampling))
    check_context(config, context)
    asked = [*data.prompts, *(prompt for _, prompts in suites for prompt in prompts)]
    model_name = f"model.name {config.model.name}"
    check_vocabulary((one.token_ids for one in asked), model_config, tokenizer, model_name)
    if not hub_items(config.model):  # a dry run fetches no weights
        check_every_weight(model_config, locate_model(config.model.name), None, f"model.name: {config.model.name}")
    return Prepared(
        renderer=renderer,
        data=data,
        suites=suites,
        sampling=sampling,
        eval_sampling=eval_sampling,
        context=context,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What runs trained side by side are given; a run alone creates these itself."""

    prepared: Prepared
    grader: Grader
    load_base: LoadBase
    engine: Engine
    console: RunConsole


def assemble(
    config: Config,
    ranks: Ranks,
    grader: Grader,
    resume: bool,
    console: RunConsole | None = None,
    stop: StopRequest | None = None,
    shared: Shared | None = None,
    least_context: int = 0,
) -> LiveRun:
    """Build everything `loop.train` needs; `least_context` as in `prepare_run`. Raises `ValueError`,
    `FileNotFoundError` or `OSError` for bad data, model or output directory, if possible before weights are loaded."""
    stop = stop or StopRequest()
    console = console or console_of(config, ranks)
    prepared = shared.prepared if shared else prepare_run(config, ranks, grader, console, resume, least_context)
    config = resolve_eval_pieces(config, sum(len(prompts) for _, prompts in prepared.suites), resume=resume)
    data, sampling, run_dir = prepared.data, prepared.sampling, Path(config.output_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep)
    hashed = hash_of_run(config, data)
    found = newest_of_run(config, checkpoints, hashed, ranks) if resume else None
    with console.phase("loading the model"):
        prompts = [prompt.token_ids for prompt in data.prompts]
        load = shared.load_base if shared else load_causal_lm
        learner = Learner(config, ranks, PAD_ID, prompts, load, begins=found is None)
    console.print_rows(describe(config, data, learner))
    with console.phase("starting vLLM"):
        queue = start_queue(config, ranks, prepared.context, stop, shared.engine if shared else None)
    with contextlib.ExitStack() as undone:
        # Until the run is returned nobody else closes the engine, and an open vLLM engine complains at exit.
        undone.callback(queue.engine.close)
        if learner.is_worth_compiling:
            with console.phase("compiling the learner's layers"):
                learner.compile_layers(prompts)
        if (where := queue.where()) is not None:
            console.print_rows({"sampling": where})
        sampler = Sampler(queue, grader, ranks, stop)
        past = PastVersions(learner, config.rollout.max_staleness)
        run = LiveRun(
            # In a shared process a run saves after every step: if the process dies, only current steps are lost.
            config=config.with_values("checkpoint", every=1) if shared else config,
            eval_sampling=prepared.eval_sampling,
            suites=prepared.suites,
            stream=RolloutStream(config, cursor_of(config, data.prompts), sampler, sampling),
            sampler=sampler,
            learner=learner,
            past=past,
            publisher=_publisher(learner, queue.engine, past, data.prompts, sampling, hashed),
            checkpoints=checkpoints,
            records=Records(run_dir, config),
            console=console,
            stop=stop,
            peaks=PhasePeaks(ranks.device),
            config_hash=hashed,
        )
        if resume:
            _continue_from(run, found)
        if ranks.is_main:
            run.records.open(run.step if found else -1)
        undone.pop_all()
    return run


def hash_of_run(config: Config, data: TrainingData) -> str:
    """Digest of the settings and of the problems as the policy sees them."""
    problems = [prompt.problem for prompt in data.prompts]
    extras = (f"\0{json.dumps(one.extra, sort_keys=True)}" if one.extra else "" for one in problems)
    texts = (f"{one.text}\0{one.answer}{extra}" for one, extra in zip(problems, extras, strict=True))
    seen = zip((prompt.token_ids for prompt in data.prompts), texts, strict=True)
    return config_hash(config, problems_digest(seen))


def newest_of_run(
    config: Config, checkpoints: Checkpoints, hashed: str, ranks: Ranks
) -> tuple[RunState, dict[str, torch.Tensor]] | None:
    """The checkpoint to resume from. Raises `ConfigError` if it belongs to a different run. Collective."""
    found = newest_on_all(checkpoints, ranks)
    if found is not None:
        check_resumable(found[0].config_hash, config, hashed, found[0].step)
        check_length(found[0].planned_steps, config, config.train.steps)
    return found


def _publisher(
    learner: Learner, engine: Engine, past: PastVersions, prompts: list[Prompt], sampling: SamplingConfig, hashed: str
) -> Publisher:
    config = learner.config
    return Publisher(
        store=AdapterStore(Path(config.output_dir) / "adapters"),
        engine=engine,
        learner=learner,
        ranks=learner.ranks,
        canary=prompts[:CANARY_PROMPTS],
        sampling=sampling,
        past=past,
        limits=gap_limits(config),
        facts={"base_model": config.model.name, "config_hash": hashed},
        keep=config.checkpoint.keep_adapters or {"lora": None, "full": 2}[config.method],
    )


def _continue_from(run: LiveRun, found: tuple[RunState, dict[str, torch.Tensor]] | None) -> None:
    """Restore the checkpoint's state, or start from the beginning; later published versions are dropped."""
    if found is not None:
        state, tensors = found
        restore_learner(run.learner, tensors)
        torch.set_rng_state(tensors[RNG])
        run.step, run.version, run.saved = state.step, state.version, state.step
        run.stream.cursor.restore(state.position, state.drawing)
        run.finished, run.rng = _without_recorded(run, state), tensors[RNG]
        run.console.note(f"resumed after step {state.step}")
        if run.step >= run.config.train.steps and run.finished.unrecorded is None:  # otherwise an evaluation is left
            run.console.note(f"every step of this run is done: raise train.steps above {run.step} to continue")
    if run.is_main:
        run.publisher.store.rewind(run.version)


def _without_recorded(run: LiveRun, state: RunState) -> RunState:
    """The checkpoint's state, without its unrecorded metrics if its step is already in metrics.jsonl, as it is when the
    run was resumed from this checkpoint before."""
    recorded = any(line["step"] == state.step for line in read_metrics(run.records.run))
    return replace(state, unrecorded=None) if run.learner.ranks.broadcast(recorded) else state


def describe(config: Config, data: TrainingData, learner: Learner) -> dict[str, str]:
    """The first lines that a run prints: what is about to happen, in numbers."""
    return {
        "model": f"{config.model.name} ({config.model.dtype})",
        "data": f"{config.data.source}: {data.describe()}",
        "training": learner.trainable.describe(),
        **plan_lines(config),
        **first_lines(config, load_meta_model(config.model)),
        "output": config.output_dir,
    }


def plan_lines(config: Config) -> dict[str, str]:
    """Prompts × samples, tokens per step, learning rate, the sampler's share of a card; needs every `auto` settled."""
    completions = config.completions_per_step
    workers, piece = config.rollout.workers, config.training_piece
    handed_out = f"{piece} prompt{'' if piece == 1 else 's'} at a time"
    if workers == "max":
        handed_out = f"as many as the cluster has room for, {handed_out}"
    else:
        handed_out = f"{workers}, {handed_out}"
    updates = config.learner.updates
    return {
        "step": (
            f"{config.train.problems_per_step} prompts × {config.sampling.n} samples = {completions} completions, "
            f"at most {completions * config.sampling.max_tokens:,} sampled tokens; {config.train.steps} steps"
        ),
        **({"workers": handed_out} if config.rollout.placement == "ray" else {}),
        **({"sampler": sampler_line(config)} if torch.cuda.is_available() else {}),
        "learning": ", ".join(
            [
                f"{config.loss.name} over {config.loss.baseline}",
                *config.loss.terms(),
                f"{updates} update{'s' * (updates > 1)} per step",
                config.optim.describe(),
            ]
        ),
    }
