"""Users' reward functions: the arguments they are called with, the values that count, and the trial call before a
run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards import GradeItem, Grader, RewardConfig
from rewards.function import load
from rewards.trial import RewardFunctionError, try_function

pytestmark = pytest.mark.usefixtures("warm_graders")

REQUEST = {"completion": "so \\boxed{5}", "reference": "5", "problem": "2+3=?", "tokens": 4}
ITEM = GradeItem(completion="so \\boxed{5}", reference="5", problem="2+3=?", tokens=4)
MINE = """
import ctypes
import re
import os
import signal
import tempfile
import time

def item(completion, reference, problem): return float(reference in completion) + len(problem)
def short(completion, reference): return float(reference in completion)
def column(completion, tests, labels, missing=0): return len(tests) + labels / 3
def near(completion, queries, solution_str): return len(queries) + len(solution_str) / 4
def column_lists(completions, tests, labels, **kwargs): return [len(t) + l / 3 for t, l in zip(tests, labels)]
def open_ended(completion, **others): return len(others)
def texts(completions, **kwargs): return [len(text) for text in completions]
def bare(completions): return [1 if "boxed" in text else 0 for text in completions]
def columns(completions, answer, **kwargs): return [float(a in c) for a, c in zip(answer, completions)]
def truth(completions, ground_truth, **kwargs): return [float(a in c) for a, c in zip(ground_truth, completions)]
def chats(prompts, completions, **kwargs): return [len(c[0]["content"]) + len(p[-1]["content"])
                                                   for p, c in zip(prompts, completions)]
def pattern(completions, **kwargs): return [float(bool(re.search(r"\\\\boxed\\{5\\}$", c))) for c in completions]
def ids(completion_ids, **kwargs): return [len(tokens) for tokens in completion_ids]
def verl(data_source, solution_str, ground_truth, extra_info=None):
    return float(ground_truth in solution_str) + (data_source == "gsm8k") + (extra_info is None) / 4
def verl_dict(solution_str, ground_truth, **kwargs): return {"score": len(kwargs) / 4, "acc": ground_truth == "5"}
def openrlhf(queries, prompts, labels, **kwargs):
    return [float(label in query[len(prompt):]) for query, prompt, label in zip(queries, prompts, labels)]
def openrlhf_dict(queries, prompts, labels): return {"rewards": [len(queries[0]) / 4], "scores": [0.0]}
def nothing(completion, reference, problem): return None
def yes(completion, reference, problem): return True

def raises(completion, reference, problem):
    return inner(completion)

def inner(completion):
    return int("five")

def nan(completion, reference, problem): return float("nan")
def inf(completion, reference, problem): return float("-inf")
def words(completion, reference, problem): return "0.5"
def a_list(completion, reference, problem): return [0.5]
def no_list(completions, **kwargs): return 0.5
def long_list(completions, **kwargs): return [0.5, 0.5]
def empty_list(completions, **kwargs): return []
def listed_words(completions, **kwargs): return ["1"]
async def later(completion, reference, problem): return 0.5
def other_names(text, gold): return 0.5
def other_columns(completions, labels, **kwargs): return [0.5]
def no_arguments(): return 0.5
def positional(completion, /): return 0.5
def slow(completion, reference, problem): time.sleep(60)
def writes(completion, reference, problem): open("reward.log", "w").write("5" * 10000)
def makes_a_file(completion, reference, problem):
    with tempfile.NamedTemporaryFile("w") as file: file.write("5")
def hoards(completion, reference, problem): return len(bytearray(2**31))
def asks_for_a_place(completion, reference, problem): return len(tempfile.gettempdir())
def endless(completion, reference, problem): return endless(completion, reference, problem)
def leaves(completion, reference, problem): raise SystemExit(0)
def crashes(completion, reference, problem): ctypes.string_at(0)
def aborts(completion, reference, problem): os.abort()
def exits(completion, reference, problem): os._exit(1)
def has_its_timer_run_out(completion, reference, problem): os.kill(os.getpid(), signal.SIGALRM)
number = 5
"""
# Takes more memory than a grading process may, when imported or when called.
TENSORS = """
import torch

WEIGHTS = torch.ones(150_000_000)

def score(completion, reference, problem): return WEIGHTS[:1_000_000].mean()
def hoards(completion, reference, problem): return torch.ones(2**31)[0]
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's modules, in the directory that the command is started from."""
    (tmp_path / "my_rewards.py").write_text(MINE)
    (tmp_path / "my_broken.py").write_text("import math\n\ndef reward(completion:\n    return 1.0\n")
    (tmp_path / "my_needy.py").write_text("import no_such_package_here\n")
    (tmp_path / "my_tensors.py").write_text(TENSORS)
    (tmp_path / "my_exit.py").write_text("import os\nos._exit(3)\n")
    (tmp_path / "my_quit.py").write_text("import sys\nsys.exit('no key given')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "my_rewards.py"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("item", 6.0),
        ("short", 1.0),
        ("open_ended", 2.0),
        ("texts", 12.0),
        ("bare", 1.0),
        ("columns", 1.0),
        ("truth", 1.0),
        ("chats", 17.0),
        ("pattern", 1.0),
        ("ids", 4.0),
        ("verl", 1.25),
        ("verl_dict", 0.5),
        ("openrlhf", 1.0),
        ("openrlhf_dict", 4.25),
        ("nothing", None),
        ("yes", 1.0),
    ],
)
def test_a_function_is_called_with_what_it_has_parameters_for(name: str, value: float | None) -> None:
    assert load(f"my_rewards:{name}", {})(REQUEST) == value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "returned nan: expected a finite number or None"),
        ("inf", "returned -inf"),
        ("words", r"returned '0.5' \(str\): expected a number or None"),
        ("a_list", r"returned \[0.5\] \(list\)"),
        ("no_list", r"must return a list with one value for each completion; .* it returned 0.5 \(float\)"),
        ("long_list", r"for one completion it returned \[0.5, 0.5\]"),
        ("empty_list", r"it returned \[\]"),
        ("listed_words", r"returned '1' \(str\)"),
        ("later", "coroutine"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_only_a_finite_number_or_none_is_a_value(name: str, message: str) -> None:
    call = load(f"my_rewards:{name}", {})
    with pytest.raises((TypeError, ValueError), match=message):
        call(REQUEST)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "my_rewards:other_names",
            "it asks for text, gold; by name it may take completion, reference, problem",
        ),
        (
            "my_rewards:other_columns",
            "it asks for labels; by name it may take completions, prompts",
        ),
        ("my_rewards:no_arguments", "it takes no argument"),
        ("my_rewards:positional", "it asks for completion"),
        ("my_rewards:number", "number in .*my_rewards.py is a int, not a function"),
        ("my_rewards:itme", "my_rewards.py has no 'itme'"),
        ("my_rewrads:item", "no module 'my_rewrads' in .*, on PYTHONPATH"),
        ("my_rewards.sub:item", "my_rewards"),
        ("my_needy:reward", "No module named 'no_such_package_here'"),
    ],
)
def test_what_cannot_be_called_is_refused(path: str, message: str) -> None:
    with pytest.raises((TypeError, AttributeError, ModuleNotFoundError), match=message):
        load(path, {})(REQUEST)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("other_columns", 0.5),
        ("column", 3.0),
        ("column_lists", 3.0),
        ("near", 2.5),
        ("open_ended", 5.0),
        ("item", 6.0),
        ("verl", 2.25),
    ],
)
def test_the_datas_other_columns_are_given_by_name(name: str, value: float) -> None:
    """Our own arguments keep their meaning if a column has the same name."""
    extra = {"tests": [1, 2], "labels": 3, "problem": "another", "data_source": "gsm8k"}
    if name == "near":
        extra |= {"queries": ["a", "b"], "solution_str": "2+"}
    assert load(f"my_rewards:{name}", {})({**REQUEST, "extra": extra}) == value


def test_other_columns_reach_the_function_in_its_process() -> None:
    import datetime

    columns = {"tests": [1, 2], "labels": 3, "when": datetime.date(2026, 1, 2)}
    for name in ("my_rewards:column", "my_rewards:column_lists"):
        with Grader.from_config(RewardConfig(workers=1, function=name)) as grader:
            (result,) = grader.grade([replace(ITEM, extra=columns)])
        assert result.terms == {"function": 3.0}


@pytest.mark.parametrize("path", ["my_rewards.py:item", "./my_rewards.py:item", "sub/my_rewards:item"])
def test_a_file_in_place_of_a_module_is_refused_with_the_module(path: str) -> None:
    with pytest.raises(ValueError, match=r"name the module, not its file, as in '(sub\.)?my_rewards:item'"):
        RewardConfig(function=path)
    with pytest.raises(ValueError, match=r"as in 'my_rewards:item', with /home/me/lab on PYTHONPATH or as the current"):
        RewardConfig(function="/home/me/lab/my_rewards.py:item")


@pytest.mark.parametrize(
    ("path", "messages"),
    [
        ("my_rewards:raises", ["trial call of my_rewards:raises", "my_rewards.py", "in inner", "ValueError", "'five'"]),
        ("my_rewards:nan", ["a finite number or None"]),
        ("my_rewards:writes", ["my_rewards.py", "in writes", "File too large"]),
        ("my_rewards:makes_a_file", ["cannot write, not even to temporary files", "in makes_a_file", "File too large"]),
        ("my_rewards:hoards", ["out of memory (rewards.memory_mib is 1,024)"]),
        ("my_tensors:hoards", ["out of memory (rewards.memory_mib is 1,024)", "my_tensors.py", "in hoards"]),
        ("my_rewards:endless", ["in endless", "RecursionError: maximum recursion depth exceeded"]),
        ("my_rewards:leaves", ["SystemExit"]),
        ("my_rewards:crashes", ["the grading worker crashed on this item: killed by signal 11 (SIGSEGV)"]),
        ("my_rewards:aborts", ["killed by signal 6 (SIGABRT)"]),
        ("my_rewards:exits", ["the grading worker crashed on this item: exit status 1"]),
        ("my_rewards:slow", ["more than rewards.timeout_s (1 s)"]),
        ("my_rewards:has_its_timer_run_out", ["more than rewards.timeout_s (1 s)"]),
        ("my_broken:reward", ["cannot load my_broken:reward", "my_broken.py", "line 3", "SyntaxError"]),
        ("my_needy:reward", ["my_needy.py", "line 1", "No module named 'no_such_package_here'"]),
        ("my_quit:reward", ["my_quit.py", "SystemExit: no key given"]),
        ("my_exit:reward", ["importing my_exit:reward ends the grading process", "exit status 3"]),
    ],
)
def test_the_trial_call_says_what_is_wrong_and_where(path: str, messages: list[str]) -> None:
    with pytest.raises(RewardFunctionError) as refused:
        try_function(RewardConfig(function=path, timeout_s=1.0), ITEM)
    text = str(refused.value)
    assert text.startswith("rewards.function: ")
    assert [message for message in messages if message not in text] == []


@pytest.mark.parametrize("path", ["my_rewards:item", "my_rewards:texts", "my_rewards:nothing", None])
def test_the_trial_call_of_a_function_that_works_says_nothing(path: str | None) -> None:
    try_function(RewardConfig(function=path), ITEM)


def test_a_module_may_load_what_takes_more_than_a_judgement() -> None:
    """torch's shared libraries alone take more, and torch looks for a temporary directory when it is imported."""
    try_function(RewardConfig(function="my_tensors:score", memory_mib=512), ITEM)


def test_a_function_may_import_when_it_is_called() -> None:
    try_function(RewardConfig(function="my_rewards:asks_for_a_place", memory_mib=512), ITEM)


def test_none_and_failures_are_not_scored() -> None:
    """Items without a score are not scored, and the reference is not blamed for them."""
    items: list[Any] = [ITEM]
    for path, verdict, detail in (
        ("my_rewards:nothing", "correct", "the reward function returned None"),
        ("my_rewards:nan", "error", "returned nan"),
        ("my_needy:reward", "error", "no_such_package_here"),
    ):
        with Grader.from_config(RewardConfig(workers=1, function=path)) as grader:
            (result,) = grader.grade(items)
            (reference,) = grader.check_references(["5"])
        assert (result.verdict, result.scored, result.reward, result.terms) == (verdict, False, 0.0, {})
        assert detail in result.detail
        assert reference.verdict == "correct"


def test_what_could_not_be_judged_counts_as_nothing_if_asked() -> None:
    """None is not a failure, and is never counted."""
    items: list[Any] = [ITEM]
    for path, verdict, scored in (("my_rewards:nan", "error", True), ("my_rewards:nothing", "correct", False)):
        config = RewardConfig(workers=1, function=path, mask_unscored=False, format_weight=0.5)
        with Grader.from_config(config) as grader:
            (result,) = grader.grade(items)
        assert (result.verdict, result.scored, result.reward, result.terms) == (verdict, scored, 0.0, {})
