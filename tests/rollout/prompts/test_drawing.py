"""The problems of a step: generated sums, and rows that are drawn, mixed and drawn again."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from rl_engine.sft.embedded import QUICKSTART_SUMS
from rollout.config import ArithmeticConfig
from rollout.prompts.arithmetic import SignedSum, arithmetic_problems, expressions
from rollout.prompts.cursor import Cursor, Mixed

# The sums that the embedded model's warm start shows (configs/embedded.yaml).
SHOWN = ArithmeticConfig(terms=(2, 3, 4, 5, 6), largest=20)


# The generator.


def test_train_and_held_out_never_share_an_expression() -> None:
    train = {p.text for seed in (0, 1, 2) for p in arithmetic_problems(SHOWN, "train", 3000, seed)}
    held_out = {p.text for p in arithmetic_problems(QUICKSTART_SUMS, "held_out", 1000, 1)}
    assert len(held_out) == 1000
    assert not train & held_out
    shown = {e.text for e in itertools.islice(expressions("train", 0, SHOWN.terms, SHOWN.largest), 20_000)}
    assert not shown & {text.removesuffix("=?") for text in held_out}


def test_answers_and_worked_steps_are_right() -> None:
    for problem in arithmetic_problems(QUICKSTART_SUMS, "train", 300, 7):
        expression = problem.text.removesuffix("=?")
        assert eval(expression) == int(problem.answer)
        assert problem.level == str(len(re.findall(r"\d+", expression)))
    worked = SignedSum((17, -20, 9)).worked()
    assert worked == "17-20=-3\n-3+9=6\n\\boxed{6}"


def test_the_generator_is_a_function_of_its_seed_and_ends() -> None:
    """Equal seeds give equal problems, and it stops when all expressions are used."""
    assert arithmetic_problems(QUICKSTART_SUMS, "train", 50, 3) == arithmetic_problems(QUICKSTART_SUMS, "train", 50, 3)
    assert arithmetic_problems(QUICKSTART_SUMS, "train", 50, 3) != arithmetic_problems(QUICKSTART_SUMS, "train", 50, 4)
    tiny = ArithmeticConfig(terms=(2,), largest=2)
    assert 0 < len(arithmetic_problems(tiny, "train", 100, 0)) <= 8


# The cursor.


def test_the_cursor_shuffles_each_epoch_and_resumes_anywhere() -> None:
    whole = Cursor(list(range(10)), seed=3)
    taken = [whole.take(4) for _ in range(6)]
    flat = list(itertools.chain(*taken))
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20] != list(range(10))
    resumed = Cursor(list(range(10)), seed=3, position=12)
    assert [resumed.take(4) for _ in range(3)] == taken[3:]
    assert Cursor([1, 2, 3], seed=0, shuffle=False).take(5) == [1, 2, 3, 1, 2]
    with pytest.raises(ValueError, match="no problem"):
        Cursor([], seed=0)


def test_what_taught_nothing_is_drawn_as_rarely_as_stated() -> None:
    """Items below 500 teach nothing: each further epoch draws about a fifth of them, and all of the others."""
    cursor = Cursor(list(range(1000)), seed=1, replay=0.2)
    passes = []
    for _ in range(4):
        found: list[int] = []
        while not found or cursor._epochs[-1].end > cursor.position:
            found += cursor.take(1)
            cursor.learned(cursor.position - 1, taught=found[-1] >= 500)
        passes.append(found)
    assert sorted(passes[0]) == list(range(1000))
    for again in passes[1:]:
        assert len(again) == len(set(again))
        assert {item for item in again if item >= 500} == set(range(500, 1000))
        assert 65 <= sum(item < 500 for item in again) <= 140  # four standard deviations around 100
    # Each epoch draws others of them: about 0.488 of all come again in at least one of three.
    assert 200 <= len({item for again in passes[1:] for item in again if item < 500}) <= 290
    assert len(cursor._epochs) <= 2


def drawn(cursor: Cursor[int] | Mixed[int], until: int, ahead: int) -> list[int]:
    """What a run draws up to a position, and whether it learns from each item, `ahead` draws later: multiples of 3
    teach something."""
    found: dict[int, int] = {}
    for position in range(first := cursor.position, until):
        (found[position],) = cursor.take(1)
        if (known := position - ahead) >= first:
            cursor.learned(known, taught=found[known] % 3 == 0)
    return [*found.values()]


def mix(replay: float) -> Mixed[int]:
    return Mixed(
        [Cursor(list(range(7)), "2/0", replay=replay), Cursor(list(range(70, 75)), "2/1", replay=replay)], [3, 1]
    )


@pytest.mark.parametrize("ahead", [0, 5])
@pytest.mark.parametrize("replay", [0.3, 1.0])
@pytest.mark.parametrize("kind", ["alone", "mix"])
def test_a_cursor_resumes_where_it_had_learned(kind: str, replay: float, ahead: int) -> None:
    """What had been drawn ahead is drawn again, also where an epoch ended or had begun on the way."""

    def made() -> Cursor[int] | Mixed[int]:
        return mix(replay) if kind == "mix" else Cursor(list(range(7)), seed=2, replay=replay)

    whole = drawn(made(), 60, ahead)
    for done in range(60 - ahead):
        begun, resumed = made(), made()
        drawn(begun, done + ahead, ahead)
        resumed.restore(done, json.loads(json.dumps(begun.state(done))))
        assert resumed.position == done
        assert drawn(resumed, 60, ahead) == whole[done:]


def test_a_mix_learns_of_the_item_that_was_drawn() -> None:
    """After one epoch of either source, at a replay of almost nothing, only what taught something comes again: 0, 3 and
    6 of one, 72 of the other."""
    whole = drawn(mix(1e-9), 60, 0)
    small, large = [item for item in whole if item < 70], [item for item in whole if item >= 70]
    assert (sorted(small[:7]), sorted(large[:5])) == ([*range(7)], [*range(70, 75)])
    assert (set(small[7:]), set(large[5:])) == ({0, 3, 6}, {72})


def test_where_nothing_taught_anything_all_are_drawn_again() -> None:
    cursor = Cursor(list(range(3)), seed=0, replay=1e-9)
    for position, _ in enumerate(range(9)):
        cursor.take(1)
        cursor.learned(position, taught=False)
    assert cursor.position == 9


def test_a_mix_keeps_its_weights_and_resumes_anywhere() -> None:
    def made() -> Mixed[str]:
        return Mixed([Cursor([f"a{i}" for i in range(5)], "0/0"), Cursor([f"b{i}" for i in range(50)], "0/1")], [3, 1])

    taken = made().take(200)
    assert "".join(item[0] for item in taken[:8]) == "aabaaaba"  # by hand: ties go to the first source
    for count in range(1, 201):
        share = sum(item[0] == "a" for item in taken[:count])
        assert abs(share - 0.75 * count) <= 1
    assert sorted(item for item in taken if item[0] == "a")[:30] == ["a0"] * 30
    assert sorted(item for item in taken if item[0] == "b") == sorted(f"b{i}" for i in range(50))
    again = made()
    assert [again._counts(position) for position in (8, 4, 8)] == [[6, 2], [3, 1], [6, 2]]  # also backwards
    for position in (0, 1, 7, 123):
        resumed = made()
        resumed.restore(position, {})
        assert resumed.take(200 - position) == taken[position:]
