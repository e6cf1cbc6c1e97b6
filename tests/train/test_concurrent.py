"""Several runs in one process do not affect each other. The engine is scripted; everything else is the real command."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rl_engine.config import Config, load_config
from rl_engine.config.file import CONFIGS, ConfigError
from rl_engine.learner import objective
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.sharing import groups_of
from rl_engine.run.output import ANEW, Beginning
from rl_engine.run.records import PLOT, read_metrics
from rl_engine.train import concurrent
from rl_engine.train.__main__ import app
from rl_engine.train.concurrent import show_all, train_all
from rollout.engine import EngineError, EngineSettings
from rollout.stopping import StopRequest
from tests.drills.equality import timeless
from tests.helpers import forked
from tests.helpers.answering_engine import UNCHECKED
from tests.helpers.concurrent_engine import StreamingAnswers
from tests.helpers.undrawn import draw_nothing, no_curves, no_report

pytestmark = pytest.mark.usefixtures("warm_graders")

SETTINGS = (
    "data.limit=16",
    "model.dtype=float32",
    "train.steps=3",
    "train.problems_per_step=2",
    "sampling.n=4",
    "eval.suites=[]",
    "log.tensorboard=false",
    "rewards.workers=1",
    *UNCHECKED,
)
EVALUATED = ("eval.suites=[held_out]", "eval.limit=2", "eval.every=2")
HEALTHY = ("lora.rank=2", "optim.lr=1e-3")
SPOILT = 7
"""The `loss.kl_coef` that marks a run whose loss is NaN."""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[StreamingAnswers]:
    """The shared engines that have been started."""
    started: list[StreamingAnswers] = []

    def start(configs: list[Config], ranks: Ranks, context: int, at_once: int) -> StreamingAnswers:
        settings = EngineSettings(model="", dtype="float32", max_model_len=context, lora_rank=1, max_loras=at_once)
        started.append(StreamingAnswers(settings))
        return started[-1]

    monkeypatch.setattr(concurrent, "start_shared_engine", start)
    return started


@pytest.fixture
def train(ranks: Ranks, tmp_path: Path) -> Callable[..., int]:
    def run(place: str, *, stop: StopRequest | None = None, at_once: int | None = None, **runs: tuple[str, ...]) -> int:
        configs = [config_of(tmp_path / place / name, *settings) for name, settings in runs.items()]
        (group,) = groups_of(configs)
        return train_all(group.cells, ranks, stop or StopRequest(), at_once or len(configs), Beginning(resume=True))

    return run


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write neither curves nor a report."""
    monkeypatch.setattr("rl_engine.train.loop.plot_run", no_curves)
    monkeypatch.setattr("rl_engine.train.one_run.write_report", no_report)


def config_of(directory: Path, *settings: str) -> Config:
    return load_config("quickstart.yaml", [*SETTINGS, *settings, f"output_dir={directory}"])


def kept(root: Path) -> dict[str, Any]:
    """The files and metrics that a run leaves behind, without times, throughput and memory."""
    lines = timeless(root)
    files = {
        str(path.relative_to(root)): path.read_bytes()
        for pattern in ("adapters/v*/*.safetensors", "checkpoints/*/*.safetensors", "rollouts/*")
        for path in root.glob(pattern)
    }
    assert len(lines) == 4
    assert len(files) == 3 + 4 + 2
    return {"metrics": lines, **files}


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every loss of the run with `loss.kl_coef=SPOILT` NaN."""

    def made(config: Any, *arguments: Any) -> Any:
        part = objective.objective(config, *arguments)
        if config.kl_coef == SPOILT:
            part = replace(part, loss=part.loss * torch.nan)
        return part

    monkeypatch.setattr("rl_engine.learner.learner.objective", made)


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_the_same_beside_any_others(
    train: Callable[..., int], engines: list[StreamingAnswers], spoilt: None, tmp_path: Path
) -> None:
    """A run gives bit-for-bit the same result alone, beside an identical run, and beside different runs, some of which
    fail."""
    assert train("alone", one=HEALTHY) == 0
    alone = kept(tmp_path / "alone" / "one")
    ill = {"like": HEALTHY, "seed": (*HEALTHY, "seed=5"), "huge": (*HEALTHY, "optim.lr=1", "lora.alpha=1e4")}
    train("ill", one=HEALTHY, **ill)
    other = {
        "nan": (*HEALTHY, f"loss.kl_coef={SPOILT}"),
        "rank": ("lora.rank=8", "lora.init=olora", "sampling.n=2"),
        "loss": ("loss.name=cispo", "loss.baseline=leave_one_out", "sampling.temperature=0.7"),
        "again": ("learner.gradient_checkpointing=true", "lora.init=eva", "learner.zero_stage=1"),
    }
    assert train("other", **other, one=HEALTHY) == 1
    assert kept(tmp_path / "ill" / "one") == kept(tmp_path / "other" / "one") == alone
    assert kept(tmp_path / "ill" / "like") == alone
    assert kept(tmp_path / "ill" / "seed") != alone
    assert engines[-1].largest == 5
    # Runs do not proceed in a fixed order: none waits for another's longest completion.
    begun = [run for run, _ in engines[-1].log]
    assert begun != begun[:5] * (len(begun) // 5)


@pytest.mark.usefixtures("undrawn")
def test_what_fails_says_so_and_who_waits_takes_its_place(
    train: Callable[..., int],
    engines: list[StreamingAnswers],
    spoilt: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = (*HEALTHY, f"loss.kl_coef={SPOILT}")
    assert train("places", at_once=2, bad=bad, one=HEALTHY, two=HEALTHY, three=HEALTHY) == 1
    assert engines[-1].settings.max_loras == engines[-1].largest == 2
    assert not engines[-1]._loaded
    told = capsys.readouterr()
    assert "bad  error: step 3, version 0: the gradient was infinite or NaN in 3 updates in a row" in told.err
    assert "one  adapter: " in told.out
    assert kept(tmp_path / "places" / "one") == kept(tmp_path / "places" / "three")


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_moved_says_so_whatever_it_writes(
    train: Callable[..., int],
    engines: list[StreamingAnswers],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Here it is the plot after its last step."""
    one = tmp_path / "moved" / "one"

    def draw(run: Path) -> None:
        if run == one:
            one.rename(tmp_path / "elsewhere")
        (run / PLOT).touch()

    monkeypatch.setattr("rl_engine.train.loop.plot_run", draw)
    assert train("moved", one=HEALTHY, two=HEALTHY) == 1
    told = capsys.readouterr().err
    assert "one  error: output_dir: " in told
    assert "was moved, removed or replaced while this process trained in it" in told
    assert len(kept(tmp_path / "moved" / "two")["metrics"]) == 4
    assert not one.exists()


@pytest.mark.usefixtures("undrawn")
def test_a_sampler_left_asleep_is_woken_for_the_next_run(
    train: Callable[..., int], engines: list[StreamingAnswers], spoilt: None, tmp_path: Path
) -> None:
    """A run that has the sampler to itself lets it sleep while it learns, and may fail at that moment."""
    assert train("asleep", at_once=1, bad=(*HEALTHY, f"loss.kl_coef={SPOILT}"), one=HEALTHY) == 1
    assert len(kept(tmp_path / "asleep" / "one")["metrics"]) == 4
    assert not engines[-1].asleep


@pytest.mark.usefixtures("undrawn")
def test_a_wrong_configuration_stops_all_before_loading(
    train: Callable[..., int], engines: list[StreamingAnswers], ranks: Ranks, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^two: .*q_porj"):
        train("wrong", one=HEALTHY, two=("lora.targets=[q_porj]",))
    with pytest.raises(ConfigError, match="two of the configurations have"):
        train("wrong", **{"one": HEALTHY, "two/../one": HEALTHY})
    assert train("wrong", one=HEALTHY) == 0
    with pytest.raises(ConfigError, match=r"^one: .* lora.rank was 2 and is 4"):
        train("wrong", one=("lora.rank=4",), two=HEALTHY)
    assert len(engines) == 1
    assert not (tmp_path / "wrong" / "two").exists()


@pytest.mark.usefixtures("undrawn")
def test_runs_that_are_stopped_save_and_go_on(
    train: Callable[..., int], engines: list[StreamingAnswers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ("lora.rank=8",)
    assert train("whole", one=HEALTHY, other=other) == 0
    for count in (3, 8):
        stop = StopRequest()

        def ask(_: object, at: int, count: int = count) -> None:
            if at == count:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(StreamingAnswers, "at_advance", ask)
        with stop.listening():
            assert train("stopped", stop=stop, at_once=2, one=HEALTHY, other=other, third=other) == 128 + 15
    assert not (tmp_path / "stopped" / "third").exists()
    monkeypatch.setattr(StreamingAnswers, "at_advance", lambda *_: None)
    assert train("stopped", one=HEALTHY, other=other) == 0
    for name in ("one", "other"):
        assert kept(tmp_path / "stopped" / name) == kept(tmp_path / "whole" / name)


def killed_while_it_samples() -> None:
    """Called in the fork that becomes the command. When the process is killed, one run is a step ahead of the other."""
    draw_nothing()

    def start(configs: list[Config], *_: object) -> StreamingAnswers:
        return StreamingAnswers(EngineSettings(model="", dtype="float32", max_model_len=128, lora_rank=1))

    def kill(_: object, at: int) -> None:
        if at == int(os.environ.get("KILLED_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)

    # setattr, because mypy rejects assignments to a module's or a class's functions.
    setattr(concurrent, "start_shared_engine", start)  # noqa: B010
    setattr(StreamingAnswers, "at_advance", kill)  # noqa: B010


def test_a_killed_process_costs_each_run_the_step_at_work(tmp_path: Path) -> None:
    (tmp_path / "like.yaml").write_text((CONFIGS / "quickstart.yaml").read_text())
    arguments = ("--config", "like.yaml", *SETTINGS, *HEALTHY, "checkpoint.every=3", "--resume")
    for at, code in (("12", -signal.SIGKILL), ("0", 0)):
        environment = {"KILLED_AT": at}
        ended, told = forked.train(tmp_path, *arguments, environment=environment, prepare=killed_while_it_samples)
        assert ended == code, told
        assert "Traceback" not in told
        if at == "12":
            steps = [len(read_metrics(tmp_path / "runs" / name)) - 1 for name in ("quickstart", "like")]
            assert 0 < max(steps) < 3
    for name, done in zip(("quickstart", "like"), steps, strict=True):
        assert not done or f"{name}  resumed after step {done}" in told
    assert kept(tmp_path / "runs" / "quickstart") == kept(tmp_path / "runs" / "like")


@pytest.mark.usefixtures("undrawn")
def test_a_sampler_that_breaks_ends_all_with_what_they_have(
    train: Callable[..., int],
    engines: list[StreamingAnswers],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks(_: object, at: int) -> None:
        if at == 8:
            raise EngineError("out of memory")

    monkeypatch.setattr(StreamingAnswers, "at_advance", breaks)
    assert train("broken", at_once=2, one=HEALTHY, two=HEALTHY, three=HEALTHY) == 1
    told = capsys.readouterr().err
    assert told.count("out of memory") == 2
    assert "three  error: not started" in told
    monkeypatch.setattr(StreamingAnswers, "at_advance", lambda *_: None)
    assert train("broken", one=HEALTHY, two=HEALTHY, three=HEALTHY) == 0
    assert kept(tmp_path / "broken" / "one") == kept(tmp_path / "broken" / "three")


def test_a_dry_run_says_who_trains_with_whom(ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [
        config_of(tmp_path / "one"),
        config_of(tmp_path / "two", "lora.rank=8"),
        config_of(tmp_path / "three", "model.dtype=bfloat16"),
        load_config("quickstart.yaml", ["method=full", "model.dtype=float32", f"output_dir={tmp_path / 'four'}"]),
    ]
    groups = groups_of(configs)
    show_all([(group, len(group.cells)) for group in groups], ranks, ANEW)
    told = capsys.readouterr().out
    assert [line.split()[1:] for line in told.splitlines() if line.startswith("runs")] == [
        ["one,", "two"],
        ["three"],
        ["four"],
    ]
    assert "2 of 2 runs at a time" in told
    assert "2 processes would need" in told
    assert not list(tmp_path.iterdir())


def test_each_run_has_the_directory_that_it_has_alone(
    train: Callable[..., int], engines: list[StreamingAnswers], tmp_path: Path
) -> None:
    assert train("two", one=(*HEALTHY, *EVALUATED, "checkpoint.every=3"), other=HEALTHY) == 0
    root = tmp_path / "two" / "one"
    names = {path.name for path in root.iterdir()}
    assert names == {
        *(".lock", ".rl_engine", "adapters", "checkpoints", "config.yaml", "curves.png", "evals", "metrics.jsonl"),
        *("report.html", "rollouts", "starts.jsonl"),
    }
    assert (tmp_path / "two" / "other" / "curves.png").is_file()  # drawn for a run without evaluations too
    assert load_config(str(root / "config.yaml")).checkpoint.every == 3
    # A failure that ends the process costs each run only the step in progress.
    assert sorted(path.name for path in (root / "checkpoints").iterdir()) == ["step000002", "step000003"]
    with gzip.open(root / "rollouts" / "step000002.jsonl.gz", "rt") as file:
        assert {json.loads(line)["adapter"] for line in file} == {"policy-v000001"}


def test_what_cannot_be_asked_of_several_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    half = tmp_path / "half.yaml"
    half.write_text((CONFIGS / "quickstart.yaml").read_text().replace("dtype: auto", "dtype: bfloat16"))
    asked = ("--config", "quickstart.yaml", "--config")
    twice = CliRunner().invoke(app, [*asked, "quickstart.yaml"])
    assert twice.exit_code == 2
    assert "output_dir: two of the configurations have runs/quickstart" in twice.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks = CliRunner().invoke(app, [*asked, str(half)])
    assert ranks.exit_code == 2
    assert "model.dtype is bfloat16, and auto there. Under a launcher all runs of one command" in ranks.stderr
    assert len(ranks.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["half.yaml"]


def test_groups_that_cannot_share_have_a_process_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **_: object) -> None:
            begun.append(command[3:])

        def wait(self) -> int:
            return -signal.SIGKILL if "half.yaml" in begun[-1] else 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rl_engine.train.sequential.subprocess.Popen", Process)
    text = (CONFIGS / "quickstart.yaml").read_text()
    for name in ("half", "other"):
        (tmp_path / f"{name}.yaml").write_text(
            text.replace("dtype: auto", "dtype: bfloat16" if name == "half" else "dtype: auto")
        )
    files = [word for name in ("quickstart", "half", "other") for word in ("--config", f"{name}.yaml")]
    ended = CliRunner().invoke(app, [*files, "--resume", "seed=3"])
    assert ended.exit_code == 1, ended.output
    assert begun == [
        ["--config", "quickstart.yaml", "--config", "other.yaml", "--resume", "seed=3"],
        ["--config", "half.yaml", "--together", "1", "--resume", "seed=3"],
    ]
    assert "half does not train together with quickstart: model.dtype is bfloat16, and auto there" in ended.output
    assert (
        "error: half: ended by SIGKILL, as a system short of memory does; --resume continues what is saved"
        in ended.output
    )
