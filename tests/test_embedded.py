"""The embedded model: what ships is small, is what its recipe says, and can be made again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from rl_engine import embedded
from rl_engine.config import load_config
from rollout.arithmetic import Expression, expressions
from rollout.models import EMBEDDED_DIR

EXPRESSION = Expression((17, -20, 9))


def test_it_is_small_and_has_the_shape_of_qwen3() -> None:
    size = sum(path.stat().st_size for path in EMBEDDED_DIR.iterdir())
    assert size <= 10_000_000
    assert AutoConfig.from_pretrained(EMBEDDED_DIR).architectures == ["Qwen3ForCausalLM"]


def test_its_record_says_that_guessing_mostly_fails_and_working_mostly_succeeds() -> None:
    accuracy = json.loads((EMBEDDED_DIR / "made.json").read_text())["held_out_accuracy"]
    assert 0.3 <= accuracy["direct"] <= 0.5 < 0.8 < accuracy["worked"] < 0.98


def test_quickstart_trains_on_the_task_it_was_made_for() -> None:
    assert load_config("quickstart.yaml").data.arithmetic == embedded.ASKED


def test_the_tokenizer_is_one_token_a_character_and_loses_nothing() -> None:
    shipped = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    for tokenizer in (shipped, embedded.build_tokenizer()):
        text = embedded.prompt_of(EXPRESSION) + EXPRESSION.worked()
        ids = tokenizer.encode(text)
        assert len(ids) == len(text) - len(embedded.BOX) + 1
        assert tokenizer.decode(ids) == text
        assert embedded.VOCABULARY.index(embedded.UNKNOWN) not in ids


def test_examples_never_show_a_held_out_expression_and_mix_the_two_styles() -> None:
    shown = list(itertools.islice(embedded.examples(0), 4000))
    held_out = {
        embedded.prompt_of(e)
        for e in itertools.islice(expressions("held_out", 1, embedded.ASKED.terms, embedded.ASKED.largest), 2000)
    }
    assert not {prompt for prompt, _ in shown} & held_out
    direct = sum(answer.startswith(embedded.BOX) for _, answer in shown) / len(shown)
    assert direct == pytest.approx(embedded.DIRECT_SHARE, abs=0.03)


def test_only_the_answer_is_learned_from() -> None:
    tokenizer = embedded.build_tokenizer()
    ids, labels = embedded.collate([("1+1=?\n", "\\boxed{2}"), ("1=?\n", "\\boxed{11}")], tokenizer)
    for row, answer in enumerate(("\\boxed{2}<end>", "\\boxed{11}<end>")):
        kept = labels[row] != embedded.IGNORED
        assert tokenizer.decode(labels[row][kept].tolist()) == answer
        assert torch.equal(ids[row][kept], labels[row][kept])


def test_the_recipe_runs_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        embedded.build(tmp_path / name, steps=2, seed=3)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
