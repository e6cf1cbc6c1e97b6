"""What a supervised run leaves behind is what reinforcement learning starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rl_engine.config.file import ConfigError, read_config
from rl_engine.config.sft import SftConfig
from rl_engine.merge.weights import merge
from rl_engine.policy.base_model import load_causal_lm
from rl_engine.policy.lora.adapter import LoraPolicy
from rl_engine.run.records import read_metrics
from rl_engine.run.trained_adapter import read_trained
from rl_engine.sft import __main__ as sft
from rl_engine.sft.batches import batches_of
from rl_engine.sft.examples import IGNORED, load_examples
from rl_engine.sft.run import load_tokenizer, run_sft
from rl_engine.sft.state import values_of
from rl_engine.sft.trainer import rows_of
from rollout.adapters import read_manifest
from rollout.models import EMBEDDED_DIR
from tests.helpers.families import write_tiny
from tests.helpers.precision import LOGPROB_NATS
from tests.helpers.supervised import CPU, RUN, assembled, config_of, mean_nats


def test_the_run_directory_says_what_happened(finished: Path) -> None:
    lines = read_metrics(finished)
    # Every second step, and the steps that measure.
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
    """Version 0 equals that of reinforcement learning with the same rank and seed, byte for byte, and the manifest
    holds the same facts."""
    trainable = LoraPolicy(config := make_config("lora.rank=1"), load_causal_lm(config, CPU))
    trainable.write(tmp_path, {name: p.detach() for name, p in trainable.parameters.items()})
    first = finished / "adapters" / "v000000"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (first / name).read_bytes() == (tmp_path / name).read_bytes()
    manifest = read_manifest(finished / "adapters" / "latest")
    assert trainable.manifest_entries().items() <= manifest.items()
    assert {"base_model", "config_hash", "name", "parent", "version", "format", "files"} <= manifest.keys()
    assert (manifest["version"], manifest["parent"]) == (6, 0)


def test_a_run_is_not_written_over(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a run already; --resume"):
        run_sft(config_of(finished.parent, *RUN))


def test_full_fine_tuning_in_bfloat16_keeps_small_updates(tmp_path: Path) -> None:
    """At 1e-6 per step a bfloat16 weight would round back. The float32 masters move, and the model that loads is their
    cast."""
    run = assembled(tmp_path, "method=full", "model.dtype=bfloat16", "optim.lr=1e-6")
    before = values_of(run.trainable)
    run.trainer.train()
    after = values_of(run.trainable)
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
    """A copy of the template is served, whatever becomes of the original file."""
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    run = assembled(tmp_path, f"method={method}", "prompt.template=chat", f"data.chat_template={file}")
    (tmp_path / "version").mkdir()
    run.trainable.write(tmp_path / "version", values_of(run.trainable), run.chat_template)
    assert (tmp_path / "version" / "chat_template.jinja").read_text() == file.read_text()


def test_what_could_not_be_merged_is_refused_before_training(tmp_path: Path) -> None:
    write_tiny("gemma2", tmp_path / "model")
    config = config_of(tmp_path, f"model.name={tmp_path / 'model'}", "lora.targets=all+lm_head")
    with pytest.raises(ValueError, match="which in gemma2 is tied to the input embedding"):
        run_sft(config, merged=True)
    assert not (tmp_path / "run" / "adapters").exists()


def test_checkpointing_that_a_family_lacks_is_refused(tmp_path: Path) -> None:
    write_tiny("ctrl", tmp_path / "model")
    config = config_of(tmp_path, f"model.name={tmp_path / 'model'}", "train.gradient_checkpointing=true")
    with pytest.raises(ValueError, match=r"train\.gradient_checkpointing is true, and transformers has no gradient"):
        run_sft(config)


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
def test_what_is_wrong_is_reported_by_key(override: str, words: list[str], tmp_path: Path) -> None:
    config_of(tmp_path)
    source = ["data.source=jsonl"] if "data.path" in override else []
    arguments = ["--config", str(tmp_path / "base.yaml"), f"output_dir={tmp_path / 'run'}", *source, override]
    result = CliRunner().invoke(sft.app, arguments)
    assert result.exit_code == 2
    assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "run").exists()
