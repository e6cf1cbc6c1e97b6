"""Configuration → a run ready to train: loads data, model and engines, in the order in which they can fail cheaply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from evals.contamination import contamination
from evals.suites import Suite, find_suite, load_suite
from rewards import Grader
from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.gap import gap_limits
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.state import restore_learner
from rl_engine.plan.forecast import first_lines
from rl_engine.plan.learning_rate import rate_of_run
from rl_engine.plan.memory import memory_of_run
from rl_engine.plan.memory_limit import check_fits
from rl_engine.policy.base_model import load_meta_model
from rl_engine.run.checkpoint import Checkpoints, RunState, restore_rng
from rl_engine.run.console import RunConsole
from rl_engine.run.output import began_with, config_hash
from rl_engine.run.peaks import PhasePeaks, available
from rl_engine.run.records import Records
from rl_engine.run.stopping import StopRequest
from rl_engine.sampling.data import TrainingData, prepare
from rl_engine.sampling.past import PastVersions
from rl_engine.sampling.placement import start_queue
from rl_engine.sampling.publish import Publisher
from rl_engine.sampling.sampler import Sampler
from rl_engine.sampling.stream import RolloutStream
from rl_engine.train.loop import Run
from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.models import locate_model
from rollout.prompts.cursor import Cursor
from rollout.prompts.renderer import Renderer
from rollout.types import Prompt

CANARY_PROMPTS = 2


def load_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        locate_model(config.model.name), revision=config.model.revision
    )
    return tokenizer


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token will do where the mask is zero; models without a padding token lend their end token."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert isinstance(pad, int)
    return pad


def samplings(config: Config, renderer: Renderer) -> tuple[SamplingConfig, SamplingConfig]:
    """(training, evaluation) sampling, both with the template's stop strings."""
    stop = (*renderer.stop, *config.sampling.stop)
    training = config.sampling.model_copy(update={"stop": stop})
    evaluation = SamplingConfig(
        n=config.eval.n,
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        max_tokens=config.eval.max_tokens or config.sampling.max_tokens,
        stop=stop,
    )
    return training, evaluation


def load_suites(config: Config, renderer: Renderer) -> tuple[list[tuple[Suite, list[Prompt]]], list[str]]:
    """The suites of a run, and what of their rows could not be used, for people."""
    suites, notes = [], []
    for name in config.eval.suites:
        suite = find_suite(name)
        loaded = load_suite(suite, config.eval.data_dir, config.eval.limit, config.data.arithmetic)
        suites.append((suite, renderer.render_all(loaded.problems)))
        notes += [
            f"warning: suite {suite.name}: dropped {count:,} rows: {reason} (for one, {loaded.examples[reason]})"
            for reason, count in loaded.dropped.most_common()
        ]
    return suites, notes


def overlap_notes(data: TrainingData, suites: list[tuple[Suite, list[Prompt]]]) -> list[str]:
    """What the training problems share with each suite, for people. Generated sums are disjoint by their making."""
    texts = {
        suite.name: [prompt.problem for prompt in prompts] for suite, prompts in suites if suite.source != "arithmetic"
    }
    found = contamination([prompt.problem for prompt in data.prompts], texts)
    return [f"warning: {one.describe()}" for one in found if one]


def context_needed(config: Config, suites: list[tuple[Suite, list[Prompt]]], sampling: SamplingConfig) -> int:
    """The longest prompt with the longest completion, in tokens."""
    training = config.data.max_prompt_tokens + config.sampling.max_tokens
    longest = max((len(prompt.token_ids) for _, prompts in suites for prompt in prompts), default=0)
    return max(training, longest + sampling.max_tokens)


def check_context(config: Config, needed: int) -> None:
    """Raises `ConfigError` when the sampler cannot serve the model, or prompts and completions do not fit into its
    context."""
    model_config: Any = AutoConfig.from_pretrained(locate_model(config.model.name), revision=config.model.revision)
    if config.method == "lora" and getattr(model_config, "num_experts", None) and not torch.cuda.is_available():
        raise ConfigError(
            f"{config.model.name} is a mixture of experts, and vLLM's CPU build cannot serve one with an adapter (it "
            "stops with \"module 'triton.language' has no attribute 'float32'\"): use method=full, or a CUDA machine"
        )
    limit = model_config.max_position_embeddings
    if needed > limit:
        raise ConfigError(
            f"prompt and completion may take {needed} tokens, and {config.model.name} has a context of {limit}: "
            "lower data.max_prompt_tokens, sampling.max_tokens or eval.max_tokens"
        )


def resolve_learning_rate(config: Config, console: RunConsole) -> Config:
    """The configuration with a number for `auto` in `optim.lr`, which is what runs and what is written down."""
    if config.optim.lr != "auto":
        return config
    model_config = AutoConfig.from_pretrained(locate_model(config.model.name), revision=config.model.revision)
    rule = rate_of_run(config, model_config)
    console.print_rows({"rate": "\n".join((f"{rule.value:.3g} by rule:", *rule.derivation))})
    return config.model_copy(update={"optim": config.optim.model_copy(update={"lr": rule.value})})


def resolve_pieces(config: Config, *, resume: bool) -> Config:
    """The configuration with a number for `auto` in `rollout.prompts_per_piece`, where workers sample.

    What a worker is given at a time decides roundings, and so the numbers of a run: one that is resumed keeps what it
    began with, however many workers it has now.
    """
    rollout = config.rollout
    if rollout.prompts_per_piece != "auto":
        return config
    found = began_with(Path(config.output_dir), "rollout", "prompts_per_piece") if resume else None
    if not isinstance(found, int):
        found = "auto" if rollout.placement == "inprocess" else config.training_piece
    return config.model_copy(update={"rollout": rollout.model_copy(update={"prompts_per_piece": found})})


def resolve_eval_pieces(config: Config, problems: int, *, resume: bool) -> Config:
    """The same for `eval.prompts_per_piece`, once it is known how many problems an evaluation has."""
    if config.eval.prompts_per_piece != "auto" or config.rollout.placement == "inprocess" or not problems:
        return config
    found = began_with(Path(config.output_dir), "eval", "prompts_per_piece") if resume else None
    piece = found if isinstance(found, int) else config.eval_piece(problems)
    return config.model_copy(update={"eval": config.eval.model_copy(update={"prompts_per_piece": piece})})


def assemble(config: Config, ranks: Ranks, grader: Grader, resume: bool, console: RunConsole | None = None) -> Run:
    """Everything `loop.train` needs. Raises `ValueError`, `FileNotFoundError` or `OSError` for what is wrong with
    the data, the model or the output directory, before any weights are loaded where that can be known."""
    console = console or RunConsole(quiet=not ranks.is_main, steps=config.train.steps)
    check_fits(memory_of_run(config, ranks), available(ranks))
    tokenizer = load_tokenizer(config)
    renderer = Renderer(tokenizer, config.prompt)
    sampling, eval_sampling = samplings(config, renderer)
    with console.phase("reading and checking problems"):
        data = prepare(config, renderer, grader, ranks)
        suites, notes = load_suites(config, renderer)
        notes += overlap_notes(data, suites) if ranks.is_main else []
    for line in notes:
        console.note(line)
    config = resolve_eval_pieces(config, sum(len(prompts) for _, prompts in suites), resume=resume)
    check_context(config, needed := context_needed(config, suites, eval_sampling))
    run_dir = Path(config.output_dir)
    records = Records(run_dir, config)
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep)
    found = checkpoints.newest() if resume else None
    with console.phase("loading the model"):
        learner = Learner(config, ranks, pad_id_of(tokenizer), [prompt.token_ids for prompt in data.prompts])
    console.print_rows(describe(config, data, learner))
    with console.phase("starting vLLM"):
        queue = start_queue(config, ranks, needed)
    sampler = Sampler(queue, grader, ranks)
    past = PastVersions(learner, config.rollout.max_staleness)
    publisher = Publisher(
        store=AdapterStore(run_dir / "adapters"),
        engine=queue.engine,
        learner=learner,
        ranks=ranks,
        canary=data.prompts[:CANARY_PROMPTS],
        sampling=sampling,
        past=past,
        limits=gap_limits(config),
        facts={"base_model": config.model.name, "config_hash": config_hash(config)},
        keep=config.checkpoint.keep_adapters or {"lora": None, "full": 2}[config.method],
    )
    run = Run(
        config=config,
        eval_sampling=eval_sampling,
        suites=suites,
        stream=RolloutStream(config, Cursor(data.prompts, config.seed, config.data.shuffle), sampler, sampling),
        sampler=sampler,
        learner=learner,
        past=past,
        publisher=publisher,
        checkpoints=checkpoints,
        records=records,
        console=console,
        stop=StopRequest(),
        peaks=PhasePeaks(ranks.device),
        config_hash=config_hash(config),
    )
    if resume:
        _continue_from(run, found)
    if ranks.is_main:
        records.open(run.step if found else -1)
    return run


def _continue_from(run: Run, found: tuple[RunState, dict[str, torch.Tensor]] | None) -> None:
    """Go to where the checkpoint stands, or back to the beginning; versions published after that are dropped."""
    if found is None:
        run.console.note("there is no checkpoint: the run begins at its beginning")
    else:
        state, tensors = found
        if state.config_hash != run.config_hash:
            raise ConfigError(f"the checkpoint after step {state.step} was made by another configuration")
        restore_learner(run.learner, tensors)
        restore_rng(tensors)
        run.step, run.version, run.stream.cursor.position = state.step, state.version, state.position
        run.console.note(f"resumed after step {state.step}")
    if run.is_main:
        run.publisher.store.rewind(run.version)


def describe(config: Config, data: TrainingData, learner: Learner) -> dict[str, str]:
    """The first lines of a run: what is about to happen, in numbers."""
    return {
        "model": f"{config.model.name} ({config.model.dtype})",
        "data": f"{config.data.source}: {data.describe()}",
        "training": learner.trainable.describe(),
        **plan_lines(config),
        **first_lines(config, load_meta_model(config.model)),
        "output": config.output_dir,
    }


def plan_lines(config: Config) -> dict[str, str]:
    """Prompts × samples, tokens a step and the rate: known from the configuration alone."""
    completions = config.train.problems_per_step * config.sampling.n
    workers, piece = config.rollout.workers, config.training_piece
    return {
        "step": (
            f"{config.train.problems_per_step} prompts × {config.sampling.n} samples = {completions} completions, "
            f"at most {completions * config.sampling.max_tokens:,} sampled tokens; {config.train.steps} steps"
        ),
        **({"workers": f"{workers}, {piece} prompts at a time"} if config.rollout.placement == "ray" else {}),
        "learning": (
            f"{config.loss.name} over {config.loss.baseline}, {config.learner.updates_per_step} update(s) a step, "
            f"Adam {config.optim.betas[0]:g}/{config.optim.betas[1]:g}, constant rate {config.optim.rate:g}"
        ),
    }
