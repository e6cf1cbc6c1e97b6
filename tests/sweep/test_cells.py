"""What a sweep's file means, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl_engine.config.file import ConfigError, read_config
from rl_engine.config.reference import rows
from rl_engine.sweep.analysis import due_cells
from rl_engine.sweep.cells import arms_of, target_of
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.schedule import targets_of
from tests.helpers.sweep_fake import sweep_of
from tests.helpers.sweep_runs import ROOT, SweepMaker

SHIPPED = sorted(path.name for path in (ROOT / "configs").glob("sweep_*.yaml"))

# The model that the recipe of the embedded model starts from is made by another command.
EMBEDDED = {"model.name": "embedded"}


# The meaning of a sweep's file.


def test_a_plain_grid_has_an_arm_a_combination_of_other_keys() -> None:
    """The axis is not one of these other keys."""
    config = sweep_of(grid={"lora.rank": [1, 8], "optim.lr": [1e-3, 1e-4], "data.arithmetic.terms": [[3, 4]]})
    arms = arms_of(config)
    assert [arm.name for arm in arms] == ["lora.rank=1", "lora.rank=8"]
    assert [arm.axis_values for arm in arms] == [(1e-4, 1e-3)] * 2
    cells = due_cells(config, {})
    assert [cell.name for cell in cells] == [
        f"lora.rank={rank}_optim.lr={rate}_seed=0" for rank in (1, 8) for rate in (0.0001, 0.001)
    ]
    assert cells[3].overrides == {"lora.rank": 8, "optim.lr": 1e-3, "data.arithmetic.terms": [3, 4], "seed": 0}


def test_an_arm_takes_values_of_its_own_for_a_key_of_the_grid() -> None:
    config = sweep_of(
        set={"train": {"steps": 2}, "lora.alpha": 16},
        grid={"train.problems_per_step": [8, 32], "optim.lr": [1e-3]},
        arms={"rank 1": {"lora": {"rank": 1}, "lora.alpha": 32}, "full": {"method": "full", "optim.lr": [1e-5, 1e-4]}},
    )
    arms = {arm.name: arm for arm in arms_of(config)}
    assert list(arms) == [f"{name}, train.problems_per_step={n}" for name in ("rank 1", "full") for n in (8, 32)]
    first, last = arms["rank 1, train.problems_per_step=8"], arms["full, train.problems_per_step=32"]
    assert first.overrides == {"train.steps": 2, "lora.alpha": 32, "lora.rank": 1}
    assert (first.axis_values, last.axis_values) == ((1e-3,), (1e-5, 1e-4))
    assert (last.family, last.at) == ("full", {"train.problems_per_step": 32})


def test_an_override_replaces_either_notation_of_the_file(make_sweep: SweepMaker) -> None:
    config = make_sweep("grid.optim.lr=[0.5]", "arms.one.test.shift=2")
    assert config.grid == {"optim.lr": (0.5,)}
    assert config.arms["one"] == {"test.shift": 2}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grid": {"lora.rank": [1]}}, ["axis", "optim.lr", "lora.rank"]),
        ({"grid": {"optim.lr": []}}, ["grid.optim.lr"]),
        ({"grid": {"optim.lr": [1e-3, 0]}}, ["optim.lr", "positive", "0"]),
        ({"grid": {"optim.lr": ["auto"]}}, ["optim.lr", "positive", "'auto'"]),
        ({"grid": {"optim.lr": [1e-3, 1e-3]}}, ["twice"]),
        ({"seeds": [0, 1], "confirm_seeds": [1]}, ["seed twice"]),
        ({"reference": "fulll", "arms": {"full": {}}}, ["'fulll'", "full"]),
        ({"set": {"seed": 3}}, ["seed is not for"]),
        ({"set": {"optim.lr": 1e-4}}, ["set.optim.lr is 0.0001, and has no effect: grid.optim.lr replaces it"]),
        (
            {"set": {"lora.rank": 4}, "arms": {"one": {"lora.rank": 1}, "two": {"lora.rank": 2}}},
            ["set.lora.rank is 4, and has no effect: every arm gives its own"],
        ),
        ({"command": "eval"}, ["'eval'", "train"]),
        ({"arms": {"a b": {}, "a/b": {}}}, ["share a directory"]),
        (
            {"arms": {"a b": {"optim.lr": [1e-3, 1e-2]}, "c": {}, "a/b": {"optim.lr": [1e-2, 1e-1]}}},
            ["two arms would share a directory: a b, a/b"],
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        targets_of(sweep_of(**{"grid": {"optim.lr": [1e-3]}, **values}))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_wrong_key_of_any_arm_is_found_before_anything_runs() -> None:
    config = sweep_of(grid={"optim.lr": [1e-3]}, arms={"good": {}, "bad": {"lora.rnk": 2}})
    with pytest.raises(ConfigError, match=r"arm bad, optim.lr=0.001[\s\S]*did you mean lora.rank"):
        targets_of(config)


@pytest.mark.parametrize(("given", "read"), [("1.10", "1.1"), ("no", "false")])
def test_a_number_or_a_switch_in_the_place_of_a_text_is_refused(given: str, read: str, make_sweep: SweepMaker) -> None:
    config = make_sweep("command=train", "base=quickstart.yaml", "arms={}", f"set.model.name={given}")
    with pytest.raises(ConfigError, match=rf"model\.name takes text, and YAML reads it as {read}: write it in quotes"):
        targets_of(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_sweep_is_valid_in_all_its_cells(name: str) -> None:
    config = read_config(SweepConfig, name)
    assert config.output_dir == f"runs/{Path(name).stem}"
    targets = targets_of(config)
    assert len(targets) >= 3
    # No run is made twice, except by an arm of one value, which repeats another arm's run at a rate that need not be
    # its best.
    chosen = [arm for arm in arms_of(config) if len(arm.axis_values) > 1]
    hashes = [targets[arm.name, value].config_hash for arm in chosen for value in arm.axis_values]
    assert len({*hashes}) == len(hashes)


def test_the_reference_in_the_docs_is_that_of_the_code() -> None:
    written = (ROOT / "docs" / "sweeps.md").read_text()
    assert "\n".join(rows(SweepConfig)) in written


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"score": {"metric": "eval/gsm8k/avg"}}, "which no run would have: eval.suites has held_out"),
        ({"score": {"metric": "eval/held_out/avg"}, "set": {"eval.suites": []}}, "eval.suites has none"),
        ({"score": {"metric": "test/log_loss"}}, "it is of supervised runs"),
        ({"command": "sft", "base": "embedded.yaml", "set": EMBEDDED}, "supervised runs measure no suites"),
        (
            {
                "command": "sft",
                "base": "embedded.yaml",
                "set": {**EMBEDDED, "data.test_size": 0},
                "score": {"metric": "test/log_loss"},
            },
            "data.test_size is 0",
        ),
    ],
)
def test_a_score_that_no_run_can_have_is_refused_at_once(values: dict[str, Any], told: str) -> None:
    """Rather than after the hours that the cells take."""
    config = sweep_of(**{"grid": {"optim.lr": [1e-3]}, **values})
    (arm,) = arms_of(config)
    with pytest.raises(ConfigError, match=told):
        target_of(config, arm, 1e-3)


def test_a_score_may_be_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"problem": "1+1=?", "answer": 2}')
    suites, score = {"eval.suites": [str(tmp_path / "mine.jsonl")]}, {"metric": "eval/mine/avg"}
    config = sweep_of(grid={"optim.lr": [1e-3]}, set=suites, score=score)
    assert target_of(config, arms_of(config)[0], 1e-3).steps == 25
