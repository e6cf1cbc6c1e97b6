"""Generated tasks: training and held-out problems never overlap, and an impossible request is refused in one line."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from typing import Any

import pytest

from datafiles.tasks import UNREPEATABLE, Task, TaskError, open_task, packed, unpacked
from rollout.config import DataConfig
from rollout.prompts import generated
from rollout.prompts.arithmetic import Split, split_of
from rollout.prompts.generated import check_task, task_problems
from rollout.prompts.problems import check_source, first_problem, load_problems, tasks_of
from rollout.types import Problem
from tests.helpers.generated import needs_reasoning_gym

pytestmark = needs_reasoning_gym

SUMS = Task(name="chain_sum", settings={"max_terms": 2, "max_digits": 2})
FEW = Task(name="chain_sum", settings={"max_terms": 2, "max_digits": 1})
LETTERS = Task(name="spell_backward", settings={"max_word_len": 4})
HAYSTACK = Task(name="needle_haystack", settings={"max_num_statements": 12})


def some(task: Task, split: Split, seed: int, count: int) -> list[Problem]:
    return list(itertools.islice(task_problems(task, split, seed), count))


def source(**given: Any) -> DataConfig:
    return DataConfig(source="reasoning_gym", **given)


@pytest.mark.parametrize("task", [SUMS, FEW, LETTERS, HAYSTACK], ids=lambda task: task.key)
def test_no_text_is_both_trained_on_and_held_out(task: Task) -> None:
    """This holds for all seeds and sizes, ignoring whitespace, even if a small task is drawn until it is exhausted."""
    train = {" ".join(one.text.split()) for seed in (0, 1, 2**40) for one in some(task, "train", seed, 400)}
    held_out = {" ".join(one.text.split()) for seed in (0, 1) for one in some(task, "held_out", seed, 100)}
    assert len(train) > 100
    assert len(held_out) > 10
    assert not train & held_out
    assert split_of("1 + 1 =\n") == split_of(" 1 +  1 =")


def test_the_parts_are_drawn_from_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry i is made from seed + i, which stays below 2**32, the limit of numpy's seeds."""
    drawn: list[int] = []

    def opened(task: Task, seed: int, size: int, where: str = "") -> Any:
        drawn.append(seed)
        return open_task(task, seed, size, where)

    monkeypatch.setattr(generated, "open_task", opened)
    splits: tuple[Split, ...] = ("train", "held_out")
    for split, seed in itertools.product(splits, range(50)):
        next(task_problems(SUMS, split, seed))
    train, held_out = drawn[:50], drawn[50:]
    assert len({*drawn}) == 100
    assert 0 <= min(train) <= max(train) + generated.ENTRIES <= min(held_out) <= max(held_out) + generated.ENTRIES
    assert max(held_out) + generated.ENTRIES <= 2**32


def test_problems_are_a_function_of_the_seed_in_every_process() -> None:
    mine = some(HAYSTACK, "train", 3, 5)
    assert some(HAYSTACK, "train", 3, 5) == mine != some(HAYSTACK, "train", 4, 5)
    code = (
        "import itertools, json; from datafiles.tasks import Task; from rollout.prompts.generated import task_problems;"
        f"made = itertools.islice(task_problems({HAYSTACK!r}, 'train', 3), 5);"
        "print(json.dumps([[one.id, one.text, one.answer] for one in made]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(said.stdout) == [[one.id, one.text, one.answer] for one in mine]


@pytest.mark.skipif(PathFinder.find_spec("pycosat") is not None, reason="the solver is installed here")
def test_a_task_without_its_solver_says_what_to_install() -> None:
    with pytest.raises(TaskError, match=r"^data.task: zebra_puzzles makes no problem.*pip install pycosat"):
        check_source(source(task="zebra_puzzles"))


@pytest.mark.parametrize("name", sorted(UNREPEATABLE))
def test_a_task_that_changes_with_the_process_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(TaskError, match=f"data.task is '{name}', whose problems.*PYTHONHASHSEED=0"):
        check_source(source(task=name))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    open_task(Task(name="isomorphic_strings"), seed=0, size=1)


def test_a_small_task_ends() -> None:
    problems = some(FEW, "train", 0, 10_000)
    assert 100 < len(problems) < 200  # 9 + 10 by 10 sums and differences of digits, nine tenths of them
    assert len({one.id for one in problems}) == len({one.text for one in problems}) == len(problems)


def test_a_configuration_loads_them() -> None:
    data = source(task="chain_sum", task_settings={"max_terms": 3}, limit=7)
    loaded = load_problems(data, split="train", seed=0, with_extra=True)
    assert len(loaded.problems) == 7
    assert {one.subject for one in loaded.problems} == {"chain_sum"}
    assert set(loaded.problems[0].extra) == {"task", "metadata"}
    assert not load_problems(data, split="train", seed=0).problems[0].extra
    first = first_problem(data)
    assert first is not None
    assert first.entry["task"] == "chain_sum"
    mix = [
        {"source": "arithmetic"},
        *({"source": "reasoning_gym", "task": "chain_sum", "limit": 5, "weight": weight} for weight in (1, 2)),
        {"source": "reasoning_gym", "task": "chain_sum", "task_settings": {"max_terms": 3}},
    ]
    whole = DataConfig.model_validate({"source": "mix", "mix": mix})
    assert [task.given for task in tasks_of(whole)] == [{}, {"max_terms": 3}]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "data.source is 'reasoning_gym', which needs data.task"),
        ({"task": "chain_sums"}, "data.task is 'chain_sums'.*did you mean chain_sum?"),
        ({"task": "zzz"}, "data.task is 'zzz'.*known are ab, acre"),
        ({"task_settings": {"max_term": 3}}, "data.task_settings.max_term.*did you mean max_terms?"),
        ({"task_settings": {"zzz": 3}}, "data.task_settings.zzz.*it has min_terms"),
        (
            {"task_settings": {"max_terms": 0}},
            r'data.task_settings is {"max_terms": 0}, which chain_sum refuses: max_t',
        ),
        ({"task_settings": {"max_terms": "x"}}, "data.task_settings is .*, which chain_sum refuses"),
        ({"task_settings": {"seed": 3}}, "data.task_settings.seed: the seed is the run's own"),
        ({"task_settings": {"size": 3}}, "data.task_settings.size: how many problems is said in data.limit"),
        ({"task": "composite"}, "data.task_settings is {}, which composite refuses"),
    ],
)
def test_what_cannot_be_had_is_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(TaskError, match=told) as error:
        check_source(source(**{"task": "chain_sum", **given} if given else {}))
    assert "\n" not in str(error.value)
    with pytest.raises(TaskError, match=r"data\.mix\.1\.task"):
        check_source(DataConfig.model_validate({"source": "mix", "mix": [{"source": "arithmetic"}, BROKEN]}))


BROKEN = {"source": "reasoning_gym", "task": "chain_sums"}


def test_null_takes_a_setting_back() -> None:
    check_task(Task(name="gcd", settings={"max_terms": None}))
    assert Task(name="gcd", settings={"max_terms": None}).key == Task(name="gcd").key


def test_an_entry_travels_as_it_is() -> None:
    entry = {"grid": ((1, 2), [3, (4,)]), "by number": {1: "a", (2, 3): None}, "(": {"{": 1.5}, "text": "…"}
    assert unpacked(packed(entry)) == entry
