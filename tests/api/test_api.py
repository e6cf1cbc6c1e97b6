"""The names that `rl_engine` offers to scripts, where nothing needs to be trained."""

from __future__ import annotations

import gzip
import importlib
import inspect
import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import rl_engine
from evals.__main__ import app as evals_app
from rewards import Verdict
from rl_engine.api import evaluation, training
from rl_engine.api.evaluation import evaluate
from rl_engine.config.file import read_config, shipped
from rl_engine.config.run import Config
from tests.helpers.run_directories import evaluated, publish, record_step, start_run


def test_every_name_is_there_and_a_wrong_one_is_not() -> None:
    assert set(rl_engine.__all__) <= set(dir(rl_engine))
    assert all(getattr(rl_engine, name) for name in rl_engine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rl_engine.trian  # noqa: B018


def test_train_can_be_called_whatever_of_its_package_is_imported() -> None:
    from rl_engine import train

    importlib.import_module("rl_engine.train.checks")
    assert rl_engine.train is train
    assert inspect.signature(train) == inspect.signature(training.train)
    with pytest.raises(TypeError, match="as load_config gives it, not 'quickstart"):
        train("quickstart.yaml")  # type: ignore[arg-type]


def test_settings_are_a_list_or_a_mapping() -> None:
    by_name = rl_engine.load_config(
        Path("quickstart.yaml"),
        {
            "lora": {"rank": 2},
            "optim.lr": 1e-5,
            "data.path": None,
            "sampling.stop": ["a, b", "7"],
            "output_dir": Path("x"),
        },
    )
    by_line = rl_engine.load_config(
        "quickstart.yaml", ["lora.rank=2", "optim.lr=1e-5", 'sampling.stop=["a, b", "7"]', "output_dir=x"]
    )
    assert by_name == by_line
    assert rl_engine.load_config("quickstart.yaml", "seed=3").seed == 3
    with pytest.raises(ValueError, match=r"^settings: .*did you mean lora\.rank"):
        rl_engine.load_config("quickstart.yaml", {"lora.rnak": 2})


@pytest.mark.parametrize("name", shipped("rl_engine.train"))
@pytest.mark.parametrize("settings", [{}, {"method": "full"}, {"eval.suites": []}], ids=str)
def test_a_configuration_read_from_its_own_yaml_is_the_same(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = rl_engine.load_config(name, settings)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert read_config(Config, str(tmp_path / "config.yaml")) == config


TEXTS = {"2+2": [("so \\boxed{4}", Verdict.CORRECT), ("\\boxed{5}", Verdict.INCORRECT)]}


def test_a_run_at_work_is_read_anew_each_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"is not a run directory: there is no .*config\.yaml"):
        rl_engine.read_run(run)
    records = start_run(run)
    found = rl_engine.read_run(str(run))
    assert (found.metrics, found.step, found.best, found.latest, found.adapters) == ([], 0, None, None, {})
    assert list(found.completions()) == found.evals == []
    assert len(found.to_pandas()) == 0
    publish(run, 0)
    records.metrics({"step": 0, "adapter/version": 0, **evaluated(run, "held_out", 0, 0.5)})
    record_step(records, 1, TEXTS, {"reward/mean": 0.5})
    publish(run, 1)
    # The second step is being written: half a line of metrics, and a file that is cut off.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    whole = gzip.compress(json.dumps({"step": 2}).encode() * 100)
    (run / "rollouts" / "step000002.jsonl.gz").write_bytes(whole[:-20])
    assert [row["step"] for row in found.metrics] == [0, 1]
    assert found.to_pandas()["reward/mean"][1] == 0.5
    assert [one["verdict"] for one in found.completions()] == ["correct", "incorrect"]
    assert list(found.completions(2)) == []
    with pytest.raises(ValueError, match="no completions of step 3: its last step is 1"):
        list(found.completions(3))
    assert (found.latest, sorted(found.adapters)) == ((run / "adapters" / "v000001").resolve(), [0, 1])
    # A report of the command that a finished run suggests, and a file that is no report.
    (run / "evals" / "after.json").write_text(json.dumps({"suites": [{"rows": []}]}))
    (run / "evals" / "notes.json").write_text("7")
    assert [report["avg"] for report in found.evals] == [0.5]
    assert found.config is not None
    assert found.settings["output_dir"] == str(run)


class Written:
    """Stands in for a command: each time it is looked at, it has done the next action."""

    def __init__(self, *actions: Callable[[], Any]) -> None:
        self.actions = list(actions)
        self.arguments: list[str] = []
        self.left = False

    @contextmanager
    def running(self, module: str, arguments: list[str], *, show: bool, hide: str | None = None) -> Any:
        self.arguments, self.hidden = arguments, hide
        try:
            yield self
        finally:
            self.left = True

    def is_at_work(self) -> bool:
        if self.actions:
            self.actions.pop(0)()
        return bool(self.actions)

    def check(self) -> None: ...


def test_the_steps_are_those_of_the_new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the run that it replaces, which exist until the new one begins."""
    run = tmp_path / "run"
    old = start_run(run)
    for step in (0, 1, 2):
        old.metrics({"step": step, "adapter/version": step, "reward/mean": 0.0})
    config = rl_engine.load_config("quickstart.yaml", {"output_dir": str(run)})

    def done(number: int) -> Callable[[], None]:
        return lambda: old.metrics({"step": number, "adapter/version": number, "reward/mean": 1.0})

    def begin() -> None:
        (run / "metrics.jsonl").rename(tmp_path / "aside")
        old.open(-1)

    command = Written(lambda: None, begin, done(0), done(1), done(2), lambda: None)
    monkeypatch.setattr(training, "running", command.running)
    seen = [(row["step"], row["reward/mean"]) for row in rl_engine.train_steps(config, overwrite=True)]
    assert seen == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert command.arguments[2:] == ["--overwrite"]
    command = Written(begin, done(0), done(1), done(2))
    monkeypatch.setattr(training, "running", command.running)
    for _ in rl_engine.train_steps(config, overwrite=True, keep_old=True):
        break
    assert command.left
    assert len(command.actions) == 2


def test_every_option_of_the_evaluation_is_one_of_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An argument of the function reaches the command's `main` with the same name and value."""
    options: dict[str, Any] = {
        "samples": 3,
        "base": False,
        "records": True,
        "instruction": "",
        "min_p": 0.1,
        "top_k": None,
        "seed": 7,
    }
    command = Written(lambda: (tmp_path / "s.json").write_text('{"suites": []}'))
    monkeypatch.setattr(evaluation, "running", command.running)
    run = start_run(tmp_path / "run").run
    places: dict[str, Any] = {"x": "runs/x", "lr=1e-3": rl_engine.read_run(run)}
    found = evaluate("embedded", ["a,b", Path("c")], places, output=tmp_path / "s.json", **options)
    assert found == {"suites": []}
    told = get_command(evals_app).make_context("evals", command.arguments).params
    given = {name: value for name, value in options.items() if value is not None}
    assert {name: told[name] for name in given} == given
    assert (told["suite"], told["model"]) == (["a,b", "c"], "embedded")
    assert told["adapter"] == ["x=runs/x", f"lr=1e-3={run}"]
    assert set(evaluation.OPTIONS) <= set(told)
    assert {name: told[name] for name in evaluation.OPTIONS if name not in given} == {
        name: default for name, default in evaluation.OPTIONS.items() if name not in given
    }
    assert command.hidden is None
    command = Written(lambda: Path(command.hidden or "", "scores.json").write_text('{"suites": []}'))
    monkeypatch.setattr(evaluation, "running", command.running)
    evaluate("embedded", "held_out")
    assert not Path(command.hidden or "").exists()  # so the command's line with its files is not shown
    with pytest.raises(TypeError, match="no option 'sample': did you mean samples"):
        evaluate("embedded", "held_out", sample=3)


@pytest.mark.parametrize("adapters", [None, [None], {"best": None}])
def test_a_version_that_is_not_there_is_told_as_such(adapters: Any) -> None:
    with pytest.raises(TypeError, match=r"None, which is no path: run.best is None if no version was scored"):
        evaluate("embedded", "held_out", adapters)


@pytest.mark.parametrize("suites", ["s.jsonl", Path("s.jsonl"), [Path("s.jsonl")]])
def test_a_run_and_a_path_are_taken_as_what_they_name(
    suites: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = Written(lambda: (tmp_path / "s.json").write_text("{}"))
    monkeypatch.setattr(evaluation, "running", command.running)
    run = rl_engine.read_run(start_run(tmp_path / "run").run)
    assert evaluate("embedded", suites, run, output=tmp_path / "s.json") == {}
    assert command.arguments[1::2] == ["--suite=s.jsonl", f"--adapter={run.path}"]
    assert repr(run) == f"Run(path={run.path!r})"
    with pytest.raises(TypeError, match=r"a file, or the name of a shipped one, and then settings, not \{'model'"):
        rl_engine.load_config({"model": "embedded"})  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"settings as a mapping, or as a list of KEY=VALUE, not \[\('lora.rank', 8\)\]"
    ):
        rl_engine.load_config("quickstart.yaml", [("lora.rank", 8)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="has no completions of step '1': its last step is "):
        next(run.completions("1"))  # type: ignore[arg-type]
