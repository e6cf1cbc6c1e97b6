"""The supervised arm: TRL's loss is the cross entropy of the answers, however a step is split or packed; what it leaves
behind is what reinforcement learning starts from; an interrupted run ends as one that was not."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import signal
import time
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from accelerate.state import AcceleratorState
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments
from trl.trainer.sft_trainer import SFTTrainer
from typer.testing import CliRunner

from rl_engine.config.file import ConfigError, read_config
from rl_engine.config.sft import SftConfig
from rl_engine.merge.weights import merge
from rl_engine.policy.lora.adapter import LoraPolicy
from rl_engine.run.output import Beginning
from rl_engine.run.records import read_metrics
from rl_engine.run.trained import read_trained
from rl_engine.sft import __main__ as sft
from rl_engine.sft.batches import batches_of
from rl_engine.sft.checks import check_quickly
from rl_engine.sft.examples import IGNORED, Example, load_examples
from rl_engine.sft.loop import SftRun
from rl_engine.sft.run import assemble, load_tokenizer, run_sft
from rl_engine.sft.trainer import log_loss, rows_of
from rollout.adapters import read_manifest
from rollout.models import EMBEDDED_DIR
from rollout.stopping import StopRequest
from tests.helpers.families import tiny_wrapper
from tests.helpers.precision import LOGPROB_NATS, float32_error

BASE = {
    "model": {"name": "embedded", "dtype": "float32"},
    "data": {"source": "arithmetic", "limit": 8, "test_size": 6, "max_tokens": 64},
    "lora": {"rank": 2},
    "optim": {"lr": 1e-3},
    "train": {"steps": 1, "batch_size": 8},
    "log": {"tensorboard": False},
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variables of a launcher, which other tests of this process may have set: accelerate would wrap the
    model for several ranks."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)


def run_heard(config: SftConfig, *, resume: bool = False) -> int:
    """The run as the command has it, which hears requests to stop."""
    stop = StopRequest()
    with stop.heard():
        return run_sft(config, stop, Beginning(resume=resume))


def config_of(directory: Path, *overrides: str) -> SftConfig:
    path = directory / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return read_config(SftConfig, str(path), [f"output_dir={directory / 'run'}", *overrides])


def assembled(directory: Path, *overrides: str) -> SftRun:
    """A run whose adapter, if it has one, already does something: beside B = 0 the gradient of A is nothing."""
    config = config_of(directory, *overrides)
    run = assemble(config, load_tokenizer(config), StopRequest(), resume=False)
    run.records.open(-1)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in run.trainable.parameters.items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return run


def nats(causal_lm: Any, example: Example) -> torch.Tensor:
    """[N] −log p of the learned tokens of one example, by the model's own logits, alone and unpadded."""
    logits_TV = causal_lm(torch.tensor(example.input_ids)[None]).logits[0]
    labels_T = torch.tensor(example.labels).long()
    nats_T = cross_entropy(logits_TV[:-1].float(), labels_T[1:], reduction="none", ignore_index=IGNORED)
    found: torch.Tensor = nats_T[labels_T[1:] != IGNORED]
    return found


def mean_nats(causal_lm: Any, examples: list[Example]) -> torch.Tensor:
    return torch.cat([nats(causal_lm, example) for example in examples]).mean()


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
    """Of the answers alone, however a step is split into micro-batches."""
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


def test_of_several_cards_a_run_takes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process sees several, transformers would spread each micro-batch over all, and TRL refuses to."""
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
def test_a_family_that_takes_no_count_of_tokens_is_split_alike(arm: str, tmp_path: Path) -> None:
    """Gemma 4 and Qwen 3.5 say of their own loss that it cannot be divided by the tokens of a whole step."""
    model = tiny_wrapper("gemma4")
    assert model.accepts_loss_kwargs is False
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(EMBEDDED_DIR).save_pretrained(tmp_path / "model")
    run = assembled(tmp_path, f"model.name={tmp_path / 'model'}", arm, ONE)
    expected = mean_nats(run.trainable.causal_lm, run.examples.train).item()
    run.trainer.train()
    (line,) = read_metrics(tmp_path / "run")
    assert line["loss"] == pytest.approx(expected, abs=LOGPROB_NATS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_example_does_not_see_its_neighbours(attention: str, tmp_path: Path) -> None:
    """Token by token: the parts of a packed row against each example alone."""
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
    # The same row taken for one long example: what this test is there to notice.
    blind = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
    assert float((packed_nats(blind) - alone).abs().max()) > 0.1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rank-1 run of the command that was never interrupted."""
    directory = tmp_path_factory.mktemp("sft")
    assert run_sft(config_of(directory, *RUN)) == 0
    return directory / "run"


RUN = (
    "lora.rank=1",
    "data.source=random_pairs",
    "data.random_pairs={count: 64, key_length: 4, value_length: 6}",
    "data.limit=null",
    "data.test_size=20",
    "train.steps=6",
    "train.microbatch_size=4",
    "optim={lr: 2e-3, schedule: linear, warmup_steps: 3}",
    "eval.at=[3]",
    "log.every=2",
)


def test_the_run_directory_says_what_happened(finished: Path) -> None:
    lines = read_metrics(finished)
    # Every second step, and those that measure.
    assert [line["step"] for line in lines] == [0, 2, 3, 4, 6]
    assert [line["step"] for line in lines if "test/log_loss" in line] == [0, 3, 6]
    measured = {"loss", "lr", "grad_norm", "time/step_s", "throughput/tokens_per_s"}
    assert all(measured <= line.keys() for line in lines[1:])
    config = read_config(SftConfig, str(finished / "config.yaml"))
    rows = rows_of(load_examples(config, load_tokenizer(config)).train, 64, packing=False)
    batches = batches_of(config, rows)
    assert [line["tokens"] for line in lines] == [batches.learned[step] for step in (0, 2, 3, 4, 6)]
    by_hand = sum(sum(label != IGNORED for label in rows[index]["labels"]) for index in batches.rows)
    assert lines[-1]["tokens"] == by_hand


def test_published_versions_are_measured_as_peft_measures_them(finished: Path) -> None:
    config = read_config(SftConfig, str(finished / "config.yaml"))
    test = load_examples(config, load_tokenizer(config)).test
    lines = read_metrics(finished)
    for version, line in ((0, lines[0]), (6, lines[-1])):
        directory = finished / "adapters" / f"v{version:06d}"
        base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, str(directory))
        with torch.no_grad():
            found = float(mean_nats(model, test))
        assert line["test/log_loss"] == pytest.approx(found, abs=LOGPROB_NATS)
    assert lines[-1]["test/log_loss"] < lines[0]["test/log_loss"] - 0.5


def test_a_version_is_what_reinforcement_learning_publishes(finished: Path, make_config: Any, tmp_path: Path) -> None:
    """Version 0 of the same rank and seed, byte for byte, and a manifest of the same facts."""
    trainable = LoraPolicy(make_config("lora.rank=1"), CPU)
    trainable.write(tmp_path, {name: p.detach() for name, p in trainable.parameters.items()})
    first = finished / "adapters" / "v000000"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (first / name).read_bytes() == (tmp_path / name).read_bytes()
    manifest = read_manifest(finished / "adapters" / "latest")
    assert trainable.manifest_entries().items() <= manifest.items()
    assert {"base_model", "config_hash", "name", "parent", "version", "format", "files"} <= manifest.keys()
    assert (manifest["version"], manifest["parent"]) == (6, 0)


def without_times(run: Path) -> list[dict[str, float]]:
    return [{key: line[key] for key in line if not key.startswith(("time", "through"))} for line in read_metrics(run)]


class _Interrupt(TrainerCallback):
    def __init__(self, step: int = 2) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def interrupted(config: SftConfig, tokenizer: Any, stop: StopRequest, *, resume: bool, step: int = 2) -> SftRun:
    """A run that is asked to stop after a step."""
    run = assemble(config, tokenizer, stop, resume=resume)
    # Before the run's own callback looks.
    run.trainer.callback_handler.callbacks.insert(0, _Interrupt(step))
    return run


def test_an_interrupted_run_ends_bit_for_bit_as_one_that_was_not(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, *RUN)
    with monkeypatch.context() as patch:
        patch.setattr("rl_engine.sft.run.assemble", interrupted)
        assert run_heard(config) == 128 + signal.SIGINT
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 2]
    with pytest.raises(ConfigError, match=r"cannot be resumed.*optim\.lr was .* and is 0\.001"):
        run_sft(config_of(tmp_path, *RUN, "optim.lr=1e-3"), beginning=Beginning(resume=True))
    for _ in ("to its end", "and then once more"):
        assert run_sft(config, beginning=Beginning(resume=True)) == 0
    ends = [path / "adapters" / "v000006" / "adapter_model.safetensors" for path in (finished, tmp_path / "run")]
    assert ends[0].read_bytes() == ends[1].read_bytes()

    assert without_times(finished) == without_times(tmp_path / "run")


def test_a_resumed_run_needs_no_adapter_to_start_from(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "adapters" / "v000006", tmp_path / "first")
    settings = (*RUN, f"lora.start_from={tmp_path / 'first'}", "checkpoint.every=1")
    config = config_of(tmp_path, *settings)
    assert run_sft(config_of(tmp_path, *settings, f"output_dir={tmp_path / 'whole'}")) == 0
    with monkeypatch.context() as patch:
        patch.setattr("rl_engine.sft.run.assemble", interrupted)
        assert run_heard(config) == 128 + signal.SIGINT
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(ConfigError, match=r"^lora.start_from: .*first is not an adapter"):
        check_quickly(config)
    check_quickly(config, resume=True)
    assert run_sft(config, beginning=Beginning(resume=True)) == 0
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "run")


@pytest.mark.parametrize("measurement", [0, 1, 2])
def test_a_stopped_measurement_is_made_when_the_run_goes_on(
    measurement: int,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the first step, on the way, after the last: no line of metrics is lost, none is there twice."""
    config = config_of(tmp_path, *RUN, "checkpoint.every=1")
    asked = []

    def stopped(trainer: Any, examples: list[Example]) -> float:
        asked.append(len(examples))
        if len(asked) == measurement + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return log_loss(trainer, examples)

    with monkeypatch.context() as patch:
        patch.setattr("rl_engine.sft.loop.log_loss", stopped)
        assert run_heard(config) == 128 + signal.SIGTERM
    output = capsys.readouterr().out
    if measurement == 0:
        assert "stopped as asked before the first step: nothing was trained" in output
        assert not (tmp_path / "run" / "checkpoints").exists()
    else:
        steps = [int(line["step"]) for line in read_metrics(finished) if "test/log_loss" in line]
        assert f"stopped after step {steps[measurement]} as asked, and saved" in output
        assert steps[measurement] not in [line["step"] for line in read_metrics(tmp_path / "run")]
    for _ in ("to its end", "and then once more"):
        assert run_sft(config, beginning=Beginning(resume=True)) == 0
    assert without_times(finished) == without_times(tmp_path / "run")


def test_a_run_made_longer_is_the_one_planned_so(tmp_path: Path) -> None:
    """Where it keeps checkpoints, of which the last is after its last step."""
    settings = (*RUN, "optim.schedule=constant", "checkpoint.every=2")
    assert run_sft(config_of(tmp_path, *settings, f"output_dir={tmp_path / 'long'}")) == 0
    assert run_sft(config_of(tmp_path, *settings, "train.steps=3")) == 0
    assert run_sft(config_of(tmp_path, *settings), beginning=Beginning(resume=True)) == 0
    ends = [
        path / "adapters" / "v000006" / "adapter_model.safetensors" for path in (tmp_path / "long", tmp_path / "run")
    ]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_run_is_not_written_over(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a run already; --resume"):
        run_sft(config_of(finished.parent, *RUN))


def test_full_fine_tuning_in_bfloat16_keeps_small_updates(tmp_path: Path) -> None:
    """At 1e-6 a step a bfloat16 weight would round back; the masters move, and the model that loads is their cast."""
    run = assembled(tmp_path, "method=full", "model.dtype=bfloat16", "optim.lr=1e-6")
    before = run.trainable.values()
    run.trainer.train()
    after = run.trainable.values()
    assert {value.dtype for value in after.values()} == {torch.float32}
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (after[name] - before[name]).abs()
    assert 0 < moved.max() < 2e-6
    run.trainable.write(tmp_path, after)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.state_dict()[name], after[name].bfloat16())
    assert load_tokenizer(config_of(tmp_path, f"model.name={tmp_path}")).chat_template


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_chat_template_of_its_own_lies_beside_what_it_trained(method: str, tmp_path: Path) -> None:
    """Of which a copy is served, whatever becomes of the file."""
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    run = assembled(tmp_path, f"method={method}", "prompt.template=chat", f"data.chat_template={file}")
    (tmp_path / "version").mkdir()
    run.trainable.write(tmp_path / "version", run.trainable.values())
    assert (tmp_path / "version" / "chat_template.jinja").read_text() == file.read_text()


def test_merging_adds_the_update_and_says_what_rounding_lost(finished: Path, tmp_path: Path) -> None:
    adapter = finished / "adapters" / "latest"
    found = merge(read_trained(adapter, None), "bfloat16", tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    layers = PeftModel.from_pretrained(base, str(adapter)).get_base_model()
    update, rounding = [], []
    for name, layer in layers.named_modules():
        if hasattr(layer, "lora_A"):
            delta = 32 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            whole = layer.base_layer.weight + delta
            assert torch.equal(merged.state_dict()[f"{name}.weight"], whole.bfloat16())
            update.append(delta.abs().flatten())
            rounding.append((whole.bfloat16().float() - whole).abs().flatten())
    assert found.update_mean == pytest.approx(float(torch.cat(update).mean()), rel=1e-4)
    assert found.error_mean == pytest.approx(float(torch.cat(rounding).mean()), rel=1e-4)
    assert found.error_mean > 0


def test_a_step_learns_from_the_same_rows_in_every_arm(tmp_path: Path) -> None:
    """Whatever the method, the rank and the micro-batches."""
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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.rnk=8", ["lora.rnk", "lora.rank"]),
        ("train.epochs=1", ["train.steps and train.epochs", "one of the two"]),
        ("train.microbatch_size=3", ["train.microbatch_size is 3", "train.batch_size (8)"]),
        ("data.source=tulu", ["data.source is 'tulu'", "openthoughts3", "tulu3"]),
        ("data.source=jsonl", ["data.source: jsonl needs data.path"]),
        ("data.path=nowhere.jsonl", ["data.path: no such file"]),
        ("data.chat_template=nowhere.jinja", ["data.chat_template: no such file"]),
        ("model.name=/nowhere", ["model.name", "/nowhere"]),
    ],
)
def test_what_is_wrong_is_said_by_key(override: str, words: list[str], tmp_path: Path) -> None:
    config_of(tmp_path)
    source = ["data.source=jsonl"] if "data.path" in override else []
    arguments = ["--config", str(tmp_path / "base.yaml"), f"output_dir={tmp_path / 'run'}", *source, override]
    result = CliRunner().invoke(sft.app, arguments)
    assert result.exit_code == 2
    assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "run").exists()


def test_updates_without_a_number_are_skipped_and_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The losses of the second and of the last three steps of six are infinite; what was learned is of the others."""
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
    assert "gradient of 3 updates in a row" in capsys.readouterr().err
    lines = [line for line in read_metrics(tmp_path / "run") if "updates/skipped" in line]
    assert [line["updates/skipped"] for line in lines] == [0, 1, 0, 1, 1]
    assert all(math.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("broken", [{1}, {2}])
def test_an_update_left_out_is_left_out_of_a_resumed_run_too(
    broken: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's count is of the updates that were made: it is in the checkpoint, also where there was none yet."""
    compute: Any = SFTTrainer.compute_loss
    calls = itertools.count(1)

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        return loss * math.inf if next(calls) in broken else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    settings = ("train.steps=4", "data.test_size=0", "checkpoint.every=1", "checkpoint.keep=9", "optim.lr=1e-2")
    (tmp_path / "resumed").mkdir()
    whole, resumed = config_of(tmp_path, *settings), config_of(tmp_path / "resumed", *settings)
    assert run_sft(whole) == 0
    calls = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr("rl_engine.sft.run.assemble", partial(interrupted, step=max(broken)))
        assert run_heard(resumed) == 128 + signal.SIGINT
    assert run_sft(resumed, beginning=Beginning(resume=True)) == 0
    ends = [Path(one.output_dir) / "adapters/v000004/adapter_model.safetensors" for one in (whole, resumed)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
