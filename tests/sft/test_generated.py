"""Data that a supervised run makes itself: sums with worked or direct answers, and random pairs to memorize."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from datafiles.dropped import Dropped
from rl_engine.config.sft import PairsConfig, SftDataConfig
from rl_engine.sft.conversations import information_bits, random_pairs, streams
from rl_engine.sft.examples import load_examples
from rollout.models import EMBEDDED_DIR
from rollout.prompts.arithmetic import SignedSum
from tests.helpers.generated import needs_reasoning_gym
from tests.helpers.supervised import config_of


def test_sums_are_shown_in_two_styles_and_held_out_ones_never() -> None:
    data = SftDataConfig(source="arithmetic")
    held, train = (list(itertools.islice(stream, 2000)) for stream in streams(data, Dropped()))
    answers = [conversation.messages[-1]["content"] for conversation in train]
    direct = sum(answer.startswith("\\boxed{") for answer in answers) / len(answers)
    assert direct == pytest.approx(data.arithmetic.direct_share, abs=0.04)
    assert not {c.question for c in held} & {c.question for c in train}
    for conversation in (*held, *train):
        left = conversation.question.removesuffix("=?")
        terms = [int(term) for term in left.replace("-", "+-").split("+")]
        assert conversation.messages[-1]["content"] in (
            SignedSum(tuple(terms)).direct(),
            SignedSum(tuple(terms)).worked(),
        )
        assert conversation.messages[-1]["content"].endswith(f"{{{sum(terms)}}}")


@needs_reasoning_gym
def test_a_generated_task_is_shown_with_its_answers_boxed() -> None:
    settings = {"min_terms": 2, "max_terms": 2, "max_digits": 2}
    data = SftDataConfig(source="reasoning_gym", task="chain_sum", task_settings=settings)
    held, train = (list(itertools.islice(stream, 40)) for stream in streams(data, Dropped()))
    assert not {c.question for c in held} & {c.question for c in train}
    for conversation in (*held, *train):
        first, sign, second = re.findall(r"(\d+) ([+-]) (\d+)", conversation.question)[-1]
        answer = int(first) + int(sign + second)
        assert conversation.messages[-1]["content"] == f"\\boxed{{{answer}}}"


def test_random_pairs_hold_what_they_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"8 possible keys: at most half"):
        PairsConfig(count=400, key_length=3, value_length=5, alphabet="01")
    settings = PairsConfig(count=400, key_length=10, value_length=5, alphabet="01")
    pairs = [tuple(m["content"] for m in c.messages) for c in random_pairs(settings, 0)]
    assert len({key for key, _ in pairs}) == len(pairs) == 400
    assert {(len(key), len(value)) for key, value in pairs} == {(10, 5)}
    counts = [sum(value[place] == "1" for _, value in pairs) for place in range(5)]
    assert all(abs(count - 200) < 5 * math.sqrt(400 / 4) for count in counts)
    assert information_bits(settings) == 400 * 5
    assert information_bits(PairsConfig(count=10, key_length=3, value_length=4)) == pytest.approx(40 * math.log2(10))
    config = config_of(tmp_path, "data.source=random_pairs", "data.test_size=7")
    found = load_examples(config, AutoTokenizer.from_pretrained(EMBEDDED_DIR))
    assert [e.input_ids.tolist() for e in found.test] == [e.input_ids.tolist() for e in found.train[:7]]
