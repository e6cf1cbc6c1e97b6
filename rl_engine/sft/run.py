"""Configuration → a complete supervised run, from the first file read to the last one written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from evals.command import exit_with_error
from rl_engine.command import UNTRAINED, instead_of_resuming, losses_explained
from rl_engine.config.sft import SftConfig
from rl_engine.learner.adam import adam
from rl_engine.learner.batching import collate, continued
from rl_engine.learner.gradients import GradientGuard, NonFiniteGradientError
from rl_engine.learner.ranks import Ranks
from rl_engine.merge.weights import merge, refuse_tied_head
from rl_engine.plan.card import settle_precision, settle_rate
from rl_engine.policy.agreement import check_with_prompts
from rl_engine.policy.attention import check_packable
from rl_engine.policy.base_model import (
    check_attention,
    check_checkpointing,
    load_meta_model,
    load_model_config,
    load_weights,
    model_notes,
)
from rl_engine.policy.full import FullPolicy
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.lora.adapter import LoraPolicy, check_adapter
from rl_engine.policy.lora.targets import trains_head
from rl_engine.policy.trainable import TrainablePolicy
from rl_engine.run.checkpoint import Checkpoints, RunState
from rl_engine.run.console import RunConsole
from rl_engine.run.origin.inputs import pin_revision
from rl_engine.run.output import ANEW, Beginning, Earlier, begins, check_output, sole_writer
from rl_engine.run.records import Records, read_metrics
from rl_engine.run.resumption import check_length, check_resumable, config_hash, problems_digest
from rl_engine.run.trained_adapter import read_trained
from rl_engine.sft.batches import batches_of
from rl_engine.sft.conversations import information_bits
from rl_engine.sft.examples import IGNORED, Example, load_examples, read_template
from rl_engine.sft.loop import SftRun
from rl_engine.sft.state import restore, values_of
from rl_engine.sft.trainer import make_trainer, rows_of
from rollout.adapters import AdapterStore
from rollout.files.durable import written_aside
from rollout.models import locate_model, read_tokenizer
from rollout.prompts.renderer import refuse_endless
from rollout.servable import check_cards, check_vocabulary
from rollout.stopping import Stopped, StopRequest
from rollout.types import AdapterRef

ADVICE = "Look at loss and grad_norm of the steps before, and try a lower optim.lr, or optim.clip_norm."


def run_sft(
    config: SftConfig,
    stop: StopRequest | None = None,
    beginning: Beginning = ANEW,
    *,
    merged: bool = False,
) -> int:
    """Train, write `config.yaml`, `metrics.jsonl` and `adapters/`, and return the exit code.

    Raises `ValueError`, `FileNotFoundError` or `OSError` for problems with the data, the model or the output directory,
    and `Stopped` on a request to stop before training has begun.
    """
    check_cards()
    config = settle_precision(config, "cuda" if torch.cuda.is_available() else "cpu", resume=beginning.resume)
    console = RunConsole(quiet=False, steps=0)
    config = settle_rate(pin_revision(config, resume=beginning.resume), console, resume=beginning.resume)
    with sole_writer(config, overwrite=beginning.overwrite, keep=beginning.keep_old, say=console.note) as earlier:
        for note in check_output(config, resume=beginning.resume):
            console.note(note)
        return _run(config, stop or StopRequest(), earlier, resume=beginning.resume, merged=merged)


def _run(config: SftConfig, stop: StopRequest, earlier: Earlier | None, *, resume: bool, merged: bool) -> int:
    """Train in an output directory that this process has claimed."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate loads DeepSpeed, which would print a warning
    if merged and trains_head(shapes := load_meta_model(config.model), config.lora, config.method):
        refuse_tied_head(shapes.config)
    tokenizer = load_tokenizer(config)
    with losses_explained(config):
        run = assemble(config, tokenizer, stop, resume=resume)
    if earlier is not None:
        run.records.on_first_step = earlier.move_aside
    with stop.deferred(), losses_explained(config, lambda: f"step {run.step + 1}: "):
        return _train(run, resume=resume, merged=merged)


def _train(run: SftRun, *, resume: bool, merged: bool) -> int:
    """Train from the first step to the last file written, and return the exit code."""
    config = run.config
    store = AdapterStore(Path(config.output_dir) / "adapters")
    if resume and run.batches.steps in store.versions():
        run.console.note("every step of this run is done")
        ref = store.open(run.batches.steps)
    else:
        try:
            train(run)
        except Stopped:
            saved = f"after step {run.step} as asked, and saved: --resume continues"
            run.console.note(f"stopped {saved if run.step else f'as asked before the first step: {UNTRAINED}'}")
            return run.stop.exit_code
        except NonFiniteGradientError as error:
            exit_with_error(f"step {run.step + 1}: {error}\n{instead_of_resuming(config)}", 1)
        ref = publish(run, run.batches.steps)
    kind = {"lora": "adapter", "full": "model"}[config.method]
    paths = {"run": config.output_dir, kind: str(store.path_of(ref.version))}
    if merged:
        target = Path(config.output_dir) / "merged"
        with written_aside(target) as scratch:
            rounding = merge(read_trained(ref.path, None), config.model.dtype, scratch)
        lost = f"{rounding.error_share:.2%} of the mean update"
        paths["merged"] = f"{target}; rounding to {config.model.dtype} moves a weight by {lost}"
    run.console.print_rows(paths)
    return 0


def train(run: SftRun) -> None:
    """Train until all steps are done. Raises `Stopped` on a request to stop, after saving what is done."""
    run.records.open(run.step or -1)
    run.titles()
    try:
        with run.records.in_place():  # before they are closed, after which this start is not the last line on record
            if run.step == 0:
                publish(run, 0)
                run.record({})
            elif run.unrecorded is not None:
                run.record(run.unrecorded)
            if run.step < run.batches.steps:
                run.trainer.train()
        if run.step < run.batches.steps:
            raise Stopped
    finally:
        run.records.close()


def load_tokenizer(config: SftConfig) -> Any:
    tokenizer = read_tokenizer(locate_model(config.model.name), config.model.revision)
    refuse_endless(tokenizer)
    if config.data.chat_template is not None:
        tokenizer.chat_template = read_template(config.data.chat_template)
    return tokenizer


def load_policy(config: SftConfig, device: torch.device) -> TrainablePolicy:
    """The model at the start of a run, the same as in reinforcement learning."""
    if config.method == "lora":
        return LoraPolicy(config, load_weights(config.model, config.train.attention).to(device))
    return FullPolicy(config, load_weights(config.model, config.train.attention, torch.float32).to(device))


def check_settings(config: SftConfig, *, resume: bool) -> None:
    """Raises `ValueError` for what the model cannot do, from its config.json alone."""
    if config.data.packing:
        check_packable(load_model_config(config.model), "data.packing")
    check_attention(config.train.attention, "train.attention")
    if config.train.gradient_checkpointing:
        check_checkpointing(config.model, "train.gradient_checkpointing")
    if config.method == "lora":
        check_adapter(config.model, config.lora, config.seed, begins=begins(config, resume=resume))


def assemble(config: SftConfig, tokenizer: Any, stop: StopRequest, *, resume: bool) -> SftRun:
    """Build everything the loop needs. Data are loaded before weights, so that cheap failures come first."""
    output = Path(config.output_dir)
    check_settings(config, resume=resume)
    examples = load_examples(config, tokenizer)
    largest = ([int(one.input_ids.max())] for one in (*examples.test, *examples.train))
    check_vocabulary(largest, load_model_config(config.model), tokenizer, f"model.name {config.model.name}")
    rows = rows_of(examples.train, config.data.max_tokens, packing=config.data.packing)
    batches = batches_of(config, rows)
    checkpoints = Checkpoints(output / "checkpoints", config.checkpoint.keep)
    made_from = problems_digest((one.input_ids.tolist(), _labelled(one)) for one in examples.train)
    hashed = config_hash(config, made_from)
    saved = checkpoints.newest() if resume else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainable = load_policy(config, device)
    check_with_prompts(
        LogprobModel(trainable.causal_lm, 1.0),
        (one.input_ids.tolist() for one in examples.train),
        lambda ids: collate([continued(ids)], pad_id=0, layout="padded").to(device),
        config.model.name,
    )
    optimizer = adam(trainable.param_groups(), config.optim, device.type)
    if saved is None:
        trainable.begin(iter(()))
    else:
        state, tensors = saved
        check_resumable(state.config_hash, config, hashed, state.step)
        restore(trainable, optimizer, tensors, state.step)
        check_length(state.planned_steps, config, batches.steps)
    found = saved[0] if saved else None
    done = found.step if found else 0
    run = SftRun(
        config=config,
        examples=examples,
        batches=batches,
        trainable=trainable,
        optimizer=optimizer,
        guard=GradientGuard(trainable.parameters.values(), optimizer, Ranks(0, 1, device), ADVICE),
        checkpoints=checkpoints,
        records=Records(output, config),
        console=RunConsole(quiet=False, steps=batches.steps),
        stop=stop,
        config_hash=hashed,
        chat_template=None if config.data.chat_template is None else tokenizer.chat_template,
        step=done,
        unrecorded=_unrecorded(output, found),
    )
    for line in model_notes(config.model):
        run.console.note(line)
    run.console.print_rows(describe(run, len(rows)))
    if done:
        run.console.note(f"resumed after step {done}")
    # The trainer needs at least one row, even if only the last step's measurement is left to do.
    left = rows.select(batches.rows[done * config.train.batch_size :] or batches.rows[:1])
    run.trainer = make_trainer(config, trainable, tokenizer, left, optimizer, run, done=done, steps=batches.steps)
    return run


def _labelled(example: Example) -> str:
    """Which tokens of an example are learned, as a string of 0s and 1s."""
    return "".join("01"[int(label != IGNORED)] for label in example.labels)


def _unrecorded(output: Path, found: RunState | None) -> dict[str, float] | None:
    """The checkpoint's metrics of its step, unless they have been recorded since."""
    if found is None or any(line["step"] == found.step for line in read_metrics(output)):
        return None
    return found.unrecorded


def describe(run: SftRun, rows: int) -> dict[str, str]:
    """The first lines that a run prints: what is about to happen, in numbers."""
    config, batches = run.config, run.batches
    train = config.train
    epochs = batches.steps * train.batch_size / rows
    lines = {
        "model": f"{config.model.name} ({config.model.dtype})",
        "data": f"{config.data.source}: {run.examples.describe()}",
        "training": run.trainable.describe(),
        "step": (
            f"{train.batch_size} {'packed rows' if config.data.packing else 'examples'}, {train.microbatch} at once; "
            f"{batches.steps} steps, {epochs:.3g} epochs, "
            f"{batches.learned[-1]:,} learned tokens of {batches.tokens[-1]:,}"
        ),
        "learning": config.optim.describe(),
        "output": config.output_dir,
    }
    if config.data.source == "random_pairs":
        lines["information"] = f"{information_bits(config.data.random_pairs):,.0f} bits in the values"
    return lines


def publish(run: SftRun, version: int) -> AdapterRef:
    """Publish the current values as version `version`, which is the number of updates in them."""
    config, values = run.config, values_of(run.trainable)
    return AdapterStore(Path(config.output_dir) / "adapters").publish(
        version,
        lambda directory: run.trainable.write(directory, values, run.chat_template),
        {
            "parent": 0 if version else None,
            **run.trainable.manifest_entries(),
            "base_model": config.model.name,
            "config_hash": run.config_hash,
        },
    )
