"""The embedded model: what is shipped is small, matches its recipe, and can be rebuilt."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from rl_engine.config import load_config
from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rl_engine.run.records import read_metrics
from rl_engine.sft import embedded
from rl_engine.sft.examples import load_examples
from rollout.models import EMBEDDED_DIR
from rollout.prompts.arithmetic import SignedSum
from tests.helpers.precision import LOGPROB_NATS, assert_same_adam_steps

EXPRESSION = SignedSum((17, -20, 9))


def test_it_is_small_and_has_the_shape_of_qwen3() -> None:
    size = sum(path.stat().st_size for path in EMBEDDED_DIR.iterdir())
    assert size <= 10_000_000
    assert AutoConfig.from_pretrained(EMBEDDED_DIR).architectures == ["Qwen3ForCausalLM"]


def test_guessing_mostly_fails_and_working_mostly_succeeds() -> None:
    """According to the record that ships with the model."""
    accuracy = json.loads((EMBEDDED_DIR / "made.json").read_text())["held_out_accuracy"]
    assert 0.3 <= accuracy["direct"] <= 0.5 < 0.8 < accuracy["worked"] < 0.98


def test_quickstart_trains_on_the_task_it_was_made_for() -> None:
    assert load_config("quickstart.yaml").data.arithmetic == embedded.QUICKSTART_SUMS


def test_the_tokenizer_has_a_token_a_character_and_loses_nothing() -> None:
    shipped = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    for tokenizer in (shipped, embedded.build_tokenizer()):
        text = embedded.prompt_of(EXPRESSION) + EXPRESSION.worked()
        ids = tokenizer.encode(text)
        assert len(ids) == len(text) - len(embedded.BOX) + 1
        assert tokenizer.decode(ids) == text
        assert embedded.VOCABULARY.index(embedded.UNKNOWN) not in ids


def test_the_warm_start_shows_every_example_once() -> None:
    """In the order of the stream."""
    config = read_config(SftConfig, embedded.RECIPE)
    assert (config.method, config.train.steps, config.train.batch_size) == ("full", 1000, 96)
    assert not config.data.shuffle
    assert set(embedded.QUICKSTART_SUMS.terms) < set(config.data.arithmetic.terms)
    assert config.data.arithmetic.largest == embedded.QUICKSTART_SUMS.largest
    short = config.with_values("train", steps=2)
    examples = load_examples(short, embedded.build_tokenizer())
    assert len(examples.train) == 2 * 96
    assert not examples.dropped.counts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded.warm_start(tmp_path_factory.mktemp("embedded"), steps=2, seed=3)


def test_the_recipe_runs_and_repeats_bit_for_bit(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model with random weights never stops generating, so two scored answers serve as well as two hundred.
    monkeypatch.setattr(embedded, "held_out_accuracy", partial(embedded.held_out_accuracy, count=2))
    embedded.build(tmp_path, steps=2, seed=3)
    again = load_file(tmp_path / "model.safetensors")
    for name, value in load_file(run / "adapters" / "latest" / "model.safetensors").items():
        assert torch.equal(again[name], value.bfloat16())
    made = json.loads((tmp_path / "made.json").read_text())
    assert set(made) == {"steps", "seed", "loss", "test_log_loss", "held_out_accuracy"}


def test_the_warm_start_is_adam_on_the_answers(run: Path) -> None:
    """Compared with two steps of torch's own AdamW on the same batches, with the recipe's rate, clipping and weight
    decay."""
    torch.manual_seed(3)
    model = embedded.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    config = read_config(SftConfig, str(run / "config.yaml"))
    assert (run / "adapters" / "v000002").is_dir()
    rows = load_examples(config, embedded.build_tokenizer()).train
    losses = []
    for step in range(2):
        optimizer.param_groups[0]["lr"] = 2e-3 * (step + 1) / 50 * (1 - step / 2)
        batch = rows[96 * step : 96 * (step + 1)]
        width = max(len(example.input_ids) for example in batch)
        ids = torch.tensor([[*e.input_ids, *[0] * (width - len(e.input_ids))] for e in batch])
        labels = torch.tensor([[*e.labels, *[-100] * (width - len(e.labels))] for e in batch])
        loss = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    expected = {name: value.detach() for name, value in model.named_parameters()}
    assert_same_adam_steps(load_file(run / "adapters" / "latest" / "model.safetensors"), expected, 4e-5)
    assert read_metrics(run)[-1]["loss"] == pytest.approx(sum(losses) / 2, abs=LOGPROB_NATS)
