"""Configuration → a supervised run from the first file read to the last one written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from evals.command import exit_with_error
from rl_engine.config.file import ConfigError
from rl_engine.config.sft import SftConfig
from rl_engine.learner.gradients import GradientGuard, NonFiniteGradientError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.learning_rate import SHORT_RUN_STEPS, learning_rate
from rl_engine.policy.base_model import check_attention
from rl_engine.policy.lora import check_adapter
from rl_engine.run.checkpoint import Checkpoints
from rl_engine.run.console import RunConsole
from rl_engine.run.merge import merge
from rl_engine.run.output import check_output, config_hash, moved_aside, sole_writer
from rl_engine.run.records import Records
from rl_engine.run.stopping import StopRequest
from rl_engine.run.trained import read_trained
from rl_engine.sft.batches import batches_of
from rl_engine.sft.conversations import information_bits
from rl_engine.sft.examples import load_examples, read_template
from rl_engine.sft.loop import SftRun
from rl_engine.sft.model import METHODS
from rl_engine.sft.state import restore
from rl_engine.sft.trainer import make_trainer, rows_of
from rollout.adapters import AdapterStore
from rollout.durable import written_aside
from rollout.models import locate_model
from rollout.types import AdapterRef

ADVICE = "Look at loss and grad_norm of the steps before, and try a lower optim.lr, or optim.clip_norm."


def run_sft(config: SftConfig, *, resume: bool = False, overwrite: bool = False, merged: bool = False) -> int:
    """Train, and leave `config.yaml`, `metrics.jsonl` and `adapters/` behind; the exit code.

    Raises `ValueError`, `FileNotFoundError` or `OSError` for what is wrong with the data, the model or the output
    directory.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("supervised training runs in one process; start it without torchrun")
    if merged and config.method == "full":
        raise ConfigError("--merge is for method lora: what method full publishes is a whole model already")
    config = resolve_learning_rate(config)
    with sole_writer(Path(config.output_dir), overwrite=overwrite) as aside:
        if aside is not None:
            RunConsole(quiet=False, steps=0).note(moved_aside(aside))
        check_output(config, resume=resume)
        return _run(config, resume=resume, merged=merged)


def _run(config: SftConfig, *, resume: bool, merged: bool) -> int:
    """Train in an output directory that is known to be ours."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate loads DeepSpeed, which would remark on it
    tokenizer = load_tokenizer(config)
    run = assemble(config, tokenizer, resume=resume)
    store = AdapterStore(Path(config.output_dir) / "adapters")
    if resume and run.batches.steps in store.versions():
        run.console.note("every step of this run is done")
        ref = store.open(run.batches.steps)
    else:
        try:
            train(run)
        except NonFiniteGradientError as error:
            exit_with_error(f"step {run.step + 1}: {error}\n--resume goes on from the last checkpoint.", 1)
        if run.step < run.batches.steps:
            assert run.stop.signum is not None
            run.console.note(f"stopped after step {run.step} as asked, and saved: --resume continues")
            return 128 + run.stop.signum
        ref = publish(run, run.batches.steps)
    paths = {"run": config.output_dir, {"lora": "adapter", "full": "model"}[config.method]: str(ref.path)}
    if merged:
        target = Path(config.output_dir) / "merged"
        with written_aside(target) as scratch:
            rounding = merge(read_trained(ref.path, None), config.model.dtype, scratch)
        lost = rounding.error_mean / rounding.update_mean if rounding.update_mean else 0.0
        paths["merged"] = f"{target}; rounding to {config.model.dtype} moves a weight by {lost:.2%} of the mean update"
    run.console.print_rows(paths)
    return 0


def train(run: SftRun) -> None:
    """Turn the loop until the steps are done or someone asks to stop."""
    run.records.open(run.step or -1)
    run.stop.listen()
    run.titles()
    try:
        if run.step == 0:
            publish(run, 0)
            run.record({})
        run.trainer.train()
    finally:
        run.records.close()


def load_tokenizer(config: SftConfig) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(locate_model(config.model.name), revision=config.model.revision)
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no end-of-sequence token: answers could never end")
    if config.data.chat_template is not None:
        tokenizer.chat_template = read_template(config.data.chat_template)
    return tokenizer


def assemble(config: SftConfig, tokenizer: Any, *, resume: bool) -> SftRun:
    """Everything the loop needs: data before weights, so that what can fail cheaply fails first."""
    output = Path(config.output_dir)
    examples = load_examples(config, tokenizer)
    rows = rows_of(examples.train, config.data.max_tokens, packing=config.data.packing)
    batches = batches_of(config, rows)
    check_attention(config.train.attention, "train.attention")
    if config.method == "lora":
        check_adapter(config.model, config.lora, config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainable = METHODS[config.method](config, tokenizer, device)
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": factor * config.optim.rate} for factor, group in trainable.param_groups],
        lr=config.optim.rate,
        betas=config.optim.betas,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
    )
    checkpoints = Checkpoints(output / "checkpoints", config.checkpoint.keep)
    done = restore(config, trainable, optimizer, checkpoints) if resume else 0
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
        stop=StopRequest(),
        step=done,
    )
    run.console.print_rows(describe(run, len(rows)))
    if done:
        run.console.note(f"resumed after step {done}")
    left = rows.select(batches.rows[done * config.train.batch_size :])
    run.trainer = make_trainer(config, trainable, tokenizer, left, optimizer, run, done=done, steps=batches.steps)
    return run


def resolve_learning_rate(config: SftConfig) -> SftConfig:
    """The configuration with a number for `auto` in `optim.lr`, printed with its derivation. A run that is measured in
    epochs is taken for a long one."""
    if config.optim.lr != "auto":
        return config
    steps = config.train.steps or SHORT_RUN_STEPS
    model_config = AutoConfig.from_pretrained(locate_model(config.model.name), revision=config.model.revision)
    text = model_config.get_text_config()
    rule = learning_rate(text.model_type, text.hidden_size, method=config.method, steps=steps, reinforcement=False)
    optim = config.optim.model_copy(update={"lr": rule.value})
    RunConsole(quiet=False, steps=0).print_rows({"rate": "\n".join((f"{rule.value:.3g} by rule:", *rule.derivation))})
    return config.model_copy(update={"optim": optim})


def describe(run: SftRun, rows: int) -> dict[str, str]:
    """The first lines of a run: what is about to happen, in numbers."""
    config, batches = run.config, run.batches
    train = config.train
    epochs = batches.steps * train.batch_size / rows
    lines = {
        "model": f"{config.model.name} ({config.model.dtype})",
        "data": f"{config.data.source}: {run.examples.describe()}",
        "training": run.trainable.description,
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
    """What has been learned, as version `version`: the number of updates in it."""
    config, values = run.config, run.trainable.values()
    return AdapterStore(Path(config.output_dir) / "adapters").publish(
        version,
        lambda directory: run.trainable.write(directory, values),
        {
            "parent": 0 if version else None,
            **run.trainable.manifest_fields,
            "base_model": config.model.name,
            "config_hash": config_hash(config),
        },
    )
