"""What a run is put together from."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from evals.suites import SUITES
from rl_engine.sampling.data import TrainingData
from rl_engine.train.assemble import overlap_notes, pad_id_of
from tests.helpers.builders import prompt


def test_a_model_without_a_padding_token_lends_its_end() -> None:
    tokenizer: Any = SimpleNamespace(pad_token_id=None, eos_token_id=7)
    assert pad_id_of(tokenizer) == 7


def test_a_run_is_warned_of_overlap_but_not_of_generated_sums() -> None:
    prompts = [prompt("a 1"), prompt("b 2")]
    data = TrainingData(prompts, Counter(), {})
    (note,) = overlap_notes(data, [(SUITES["gsm8k"], prompts[:1]), (SUITES["held_out"], prompts)])
    assert note.startswith("warning: 1 of 2 training problems overlap gsm8k (1 word for word")
