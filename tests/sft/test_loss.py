"""TRL's loss is the cross entropy of the answers, however a step is split or packed."""

from __future__ import annotations

import itertools
import math
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments
from trl.trainer.sft_trainer import SFTTrainer

from rl_engine.policy.agreement import DisagreementError
from rl_engine.run.records import read_metrics
from rl_engine.sft.batches import batches_of
from rl_engine.sft.examples import IGNORED, Example
from rl_engine.sft.loop import SftRun
from rl_engine.sft.run import run_sft
from rl_engine.sft.trainer import log_loss, rows_of
from rollout.models import EMBEDDED_DIR
from tests.helpers.families import tiny_model, tiny_wrapper, write_tiny
from tests.helpers.precision import LOGPROB_NATS, float32_error
from tests.helpers.supervised import assembled, config_of, mean_nats, nats


class _Gradients(TrainerCallback):
    def __init__(self, run: SftRun) -> None:
        self.run = run
        self.seen: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        for name, parameter in self.run.trainable.parameters.items():
            assert parameter.grad is not None, name
            self.seen[name] = parameter.grad.clone()


ONE, PACKED = "train.microbatch_size=1", ("data.packing=true", "train.batch_size=3")

SPLITS: dict[str, list[tuple[str, ...]]] = {
    "lora.targets=all": [(), (ONE,), PACKED, (*PACKED, ONE), ("train.gradient_checkpointing=true",)],
    "lora.targets=mlp+lm_head": [(ONE,), PACKED],
    "method=full": [(ONE,), PACKED],
}


@pytest.mark.parametrize("arm", SPLITS)
def test_loss_and_gradient_are_those_of_the_cross_entropy(arm: str, tmp_path: Path) -> None:
    """Only the answers count, however a step is split into micro-batches."""
    plain = assembled(tmp_path, arm)
    loss = mean_nats(plain.trainable.causal_lm, plain.examples.train)
    gradients = torch.autograd.grad(loss, list(plain.trainable.parameters.values()))
    norm = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
    assert len(rows_of(plain.examples.train, 64, packing=True)) == 3
    for index, overrides in enumerate(SPLITS[arm]):
        directory = tmp_path / str(index)
        directory.mkdir()
        run = assembled(directory, arm, *overrides)
        run.trainer.add_callback(found := _Gradients(run))
        run.trainer.train()
        (line,) = read_metrics(directory / "run")
        assert line["loss"] == pytest.approx(loss.item(), abs=LOGPROB_NATS), overrides
        assert line["grad_norm"] == pytest.approx(norm, rel=float32_error(30 * 512))
        for name, gradient in zip(plain.trainable.parameters, gradients, strict=True):
            assert float((found.seen[name] - gradient).abs().max()) < float32_error(30 * 512) * norm, (name, overrides)


def test_a_padding_token_that_the_model_lacks_is_not_used(tmp_path: Path) -> None:
    """A padding token added only to the tokenizer, as many scripts do for Llama 2, may not appear in any row."""
    shutil.copytree(EMBEDDED_DIR, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path / "model")
    run = assembled(tmp_path, f"model.name={tmp_path / 'model'}", "data.test_size=2")
    short, long = run.examples.test[0], run.examples.train[0]
    longer = Example(np.tile(long.input_ids, 2), np.tile(long.labels, 2))
    assert log_loss(run.trainer, [short, longer]) > 0


def test_of_several_cards_a_run_takes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a process sees several cards, transformers would spread each micro-batch over all of them, which TRL
    refuses."""
    devices_of = vars(TrainingArguments)["_setup_devices"].func

    def beside_another(arguments: TrainingArguments) -> torch.device:
        device: torch.device = devices_of(arguments)
        arguments._n_gpu = 2
        return device

    several = cached_property(beside_another)
    several.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", several)
    run = assembled(tmp_path, "train.microbatch_size=2")
    assert (run.trainer.args.n_gpu, run.trainer.args.train_batch_size) == (1, 2)


@pytest.mark.parametrize("arm", ["lora.targets=all", "lora.targets=mlp+lm_head"])
@pytest.mark.parametrize("kind", ["gemma4", "phimoe", "llama4_text"])
def test_odd_families_learn_from_their_own_log_loss(kind: str, arm: str, tmp_path: Path) -> None:
    """Gemma 4 declares that its own loss cannot be divided by the token count of a whole step, PhiMoE draws its experts
    at random in training mode, and TRL does not find the decoder of Llama 4."""
    model = tiny_wrapper(kind) if kind == "gemma4" else tiny_model(kind)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(EMBEDDED_DIR).save_pretrained(tmp_path / "model")
    run = assembled(tmp_path, f"model.name={tmp_path / 'model'}", arm, ONE)
    assert kind != "gemma4" or run.trainable.causal_lm.accepts_loss_kwargs is False
    expected = mean_nats(run.trainable.causal_lm.eval(), run.examples.train).item()
    run.trainer.train()
    (line,) = read_metrics(tmp_path / "run")
    assert line["loss"] == pytest.approx(expected, abs=LOGPROB_NATS)


def test_a_family_whose_log_loss_would_be_wrong_is_refused(tmp_path: Path) -> None:
    write_tiny("inkling_text", tmp_path / "model")
    with pytest.raises(DisagreementError, match=r"model.name .* type inkling_text compute something"):
        assembled(tmp_path, f"model.name={tmp_path / 'model'}")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_example_does_not_see_its_neighbours(attention: str, tmp_path: Path) -> None:
    """The parts of a packed row are compared with each example alone, token by token."""
    run = assembled(tmp_path, "data.packing=true", f"train.attention={attention}", "train.batch_size=1")
    rows = rows_of(run.examples.train, 64, packing=True)
    assert max(len(row["seq_lengths"]) for row in rows) > 1
    batch = run.trainer.data_collator(list(rows))

    @torch.no_grad()
    def packed_nats(inputs: dict[str, Any]) -> Any:
        found = run.trainer.model(**inputs, fused_lm_head=True)
        return -found.log_probs[found.label_mask]

    parts = []
    for row in rows:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        for part, marks in zip(ids.split(row["seq_lengths"]), labels.split(row["seq_lengths"]), strict=True):
            parts.append(Example(part.numpy(), marks.numpy()))
    with torch.no_grad():
        alone = torch.cat([nats(run.trainable.causal_lm, part) for part in parts])
    torch.testing.assert_close(packed_nats(dict(batch)), alone, atol=LOGPROB_NATS, rtol=0)
    # The same row taken as one long example: the fault that this test is meant to notice.
    blind = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
    assert float((packed_nats(blind) - alone).abs().max()) > 0.1


def test_a_step_learns_from_the_same_rows_in_every_arm(tmp_path: Path) -> None:
    """Whatever the method, the rank and the micro-batch size."""
    lengths = (5, 3, 9, 4, 7, 6)
    labels = [np.array([IGNORED] + [7] * (n - 1), np.int32) for n in lengths]
    rows = rows_of([Example(abs(row), row) for row in labels], 64, packing=False)
    one = batches_of(config_of(tmp_path, "train={steps: null, epochs: 2, batch_size: 4, microbatch_size: 1}"), rows)
    two = batches_of(config_of(tmp_path, "train={steps: null, epochs: 2, batch_size: 4}", "method=full"), rows)
    assert one == two
    assert one.steps == 3
    assert sorted(one.rows) == sorted([*range(6), *range(6)])
    assert (one.tokens[-1], one.learned[-1]) == (2 * 34, 2 * 28)
    assert (
        batches_of(config_of(tmp_path, "train={steps: null, epochs: 2, batch_size: 4}", "seed=1"), rows).rows
        != one.rows
    )


def test_updates_without_a_number_are_skipped_and_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of six steps, the losses of the second and of the last three are infinite; only the others are learned from."""
    broken = {2, 4, 5, 6}
    calls = itertools.count(1)
    compute: Any = SFTTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        return loss * math.inf if next(calls) in broken else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    config = config_of(tmp_path, "train.steps=6", "data.test_size=0", "log.every=1")
    with pytest.raises(typer.Exit) as stopped:
        run_sft(config)
    assert stopped.value.exit_code == 1
    assert "infinite or NaN in 3 updates in a row" in capsys.readouterr().err
    lines = [line for line in read_metrics(tmp_path / "run") if "updates/skipped" in line]
    assert [line["updates/skipped"] for line in lines] == [0, 1, 0, 1, 1]
    assert all(math.isfinite(value) for line in lines for value in line.values())
