"""The engine accepts more work while it samples: this changes no batch's completions, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from rollout.config import SamplingConfig
from rollout.engine import EngineError, InFlight
from rollout.types import Problem, Prompt
from tests.helpers.same_groups import assert_same_but_for_rounding, completions

pytestmark = pytest.mark.engine

SAMPLING = SamplingConfig(n=4, max_tokens=30)
SHORT = SAMPLING.model_copy(update={"max_tokens": 3})


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Prompt]:
    problems = [Problem(id=text, text=text, answer="") for text in ("3+4=?", "9+8+1=?", "7-5=?", "2+2=?", "20-19=?")]
    return [Prompt(problem=p, text=p.text, token_ids=tuple(tokenizer(p.text)["input_ids"])) for p in problems]


@pytest.fixture
def engine(vllm_engine: Any) -> Iterator[Any]:
    """The session's engine, which has nothing in flight afterwards, whatever happens in the test."""
    yield vllm_engine
    while vllm_engine._asked:
        vllm_engine.advance()


def seeds(prompts: Sequence[Prompt], occasion: str) -> list[str]:
    return [f"{occasion}/{prompt.problem.id}" for prompt in prompts]


def until_done(engine: Any, count: int) -> list[InFlight]:
    """The batches that finish, in order."""
    done: list[InFlight] = []
    while len(done) < count:
        done += engine.advance()
    return done


def test_what_is_begun_beside_others_is_what_it_is_alone(engine: Any, prompts: list[Prompt]) -> None:
    """The second batch begins when the first already has some tokens, with another length limit; a third one is
    generated as a whole while both are in flight."""
    first, second, third = prompts[:3], prompts[3:], prompts[1:4]
    alone = [
        engine.generate(some, sampling, None, seeds(some, occasion))
        for some, sampling, occasion in ((first, SAMPLING, "a"), (second, SHORT, "b"), (third, SAMPLING, "c"))
    ]
    long = engine.begin(first, SAMPLING, None, seeds(first, "a"))
    for _ in range(4):
        assert engine.advance() == []
    short = engine.begin(second, SHORT, None, seeds(second, "b"))
    at_once = engine.generate(third, SAMPLING, None, seeds(third, "c"))
    assert short.done
    assert set(until_done(engine, 2)) == {short, long}
    assert_same_but_for_rounding(long.groups(), alone[0])
    assert_same_but_for_rounding(short.groups(), alone[1])
    assert_same_but_for_rounding(at_once, alone[2])


def test_each_batch_comes_back_once_and_whole_the_shorter_first(engine: Any, prompts: list[Prompt]) -> None:
    long = engine.begin(prompts, SAMPLING, None, seeds(prompts, "long"))
    short = [engine.begin([prompt], SHORT, None, seeds([prompt], "short")) for prompt in prompts]
    done = until_done(engine, 1 + len(short))
    assert done.index(long) == len(short)
    assert set(done) == {long, *short}
    for batch in done:
        assert all(len(group.completions) == SAMPLING.n for group in batch.groups())
    assert [group.prompt for batch in short for group in batch.groups()] == prompts
    assert not engine._asked


def test_what_goes_on_is_begun_beside_others_too(engine: Any, prompts: list[Prompt]) -> None:
    begun = engine.generate(prompts, SHORT, None, seeds(prompts, "x"))
    alone = engine.extend(begun, SAMPLING, None, seeds(prompts, "x"))
    other = engine.begin(prompts, SAMPLING, None, seeds(prompts, "other"))
    engine.advance()
    more = engine.begin_extending(begun, SAMPLING, None, seeds(prompts, "x"))
    assert set(until_done(engine, 2)) == {other, more}
    assert_same_but_for_rounding(more.groups(), alone)
    assert {len(one.segments) for one in completions(more.groups())} <= {1, 2}


def test_a_batch_without_rows_is_done_from_the_start(engine: Any, prompts: list[Prompt]) -> None:
    assert engine.generate([], SAMPLING, None, []) == []
    nothing = engine.begin([], SAMPLING, None, [])
    assert (nothing.done, nothing.left, nothing.groups()) == (True, 0, [])
    whole = engine.generate(prompts, SHORT, None, seeds(prompts, "whole"))
    finished = engine.begin_extending(whole, SHORT, None, seeds(prompts, "whole"))
    assert finished.done
    assert finished.groups() == whole
    assert not engine._asked


def test_what_is_left_of_a_batch_is_known_on_the_way(engine: Any, prompts: list[Prompt]) -> None:
    batch = engine.begin(prompts, SAMPLING, None, seeds(prompts, "left"))
    left = [batch.left]
    while not batch.done:
        engine.advance()
        left.append(batch.left)
    assert left[0] == SAMPLING.n * len(prompts)
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert len(set(left)) > 3, "completions of one length show nothing"


@pytest.mark.parametrize(
    ("error", "cards"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 1),
        # Errors that vLLM raises for its worker processes, one per GPU.
        (RuntimeError("Worker failed with error 'CUDA out of memory'"), 2),
        (TimeoutError("RPC call to execute_model timed out."), 2),
    ],
)
def test_a_device_that_fails_is_an_error_of_the_engine(
    error: Exception, cards: int, engine: Any, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = engine.begin(prompts, SHORT, None, seeds(prompts, "error"))

    def fails() -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine._llm.llm_engine, "step", fails)
        patch.setattr(engine, "settings", replace(engine.settings, tensor_parallel_size=cards))
        with pytest.raises(EngineError, match=f"while it sampled: {error}"):
            engine.advance()
    assert not batch.done
