"""What an evaluation asks of any sampler, and in which order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evals.scoring.kept import kept_answers
from evals.suites import find_suite
from rewards import Grader
from rl_engine.learner.ranks import Ranks
from rl_engine.run.console import RunConsole
from rl_engine.sampling.sampler import Sampler
from rl_engine.sft.loop import SftRun
from rl_engine.train import loop
from rl_engine.train.loop import conclude, evaluate, gained_nothing, summary_paths
from rollout.config import SamplingConfig
from rollout.stopping import Stopped
from rollout.types import RolloutGroup
from rollout.work_items import PromptBatch, Request, split
from tests.helpers.builders import completion, prompt

SAMPLING = SamplingConfig(n=1, temperature=0, max_tokens=4)


class Queue:
    """Records the calls made to it."""

    has_all_groups = False

    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []

    def submit(self, batch: PromptBatch) -> Request:
        assert batch.urgent
        assert batch.prompts_per_piece is not None
        self.said.append(("asked", batch.prompts_per_piece))
        return split(batch, 100)

    def collect(self, request: Request, *_: Any) -> list[RolloutGroup]:
        self.said.append(("waited for", len(request.items[0].prompts)))
        return [
            RolloutGroup(prompt=p, completions=(completion("2", tokens=2, adapter="base"),))
            for p in request.items[0].prompts
        ]


@pytest.fixture
def run(make_config: Any, grader: Grader, tmp_path: Path) -> Any:
    config = make_config("rollout.placement=ray", "rollout.workers=3")
    ranks = Ranks(0, 1, torch.device("cpu"))
    queue: Any = Queue()
    suites = [
        (find_suite(name), [prompt(f"{i}=?", id=f"{name}{i}", answer="2") for i in range(count)])
        for name, count in (("held_out", 5), ("gsm8k", 2))
    ]
    console = RunConsole(quiet=True, steps=1)
    sampler = Sampler(queue, grader, ranks)
    return SimpleNamespace(
        config=config, suites=suites, sampler=sampler, eval_sampling=SAMPLING, console=console, step=0, is_main=True,
        adapter=None, examples=[], records=SimpleNamespace(run=tmp_path, check_place=lambda: None),
    )  # fmt: skip


def test_all_suites_are_asked_for_before_the_first_is_waited_for(run: Any) -> None:
    reports = evaluate(run)
    # Seven problems for three workers: pieces of three.
    assert run.sampler.queue.said == [("asked", 3), ("asked", 3), ("waited for", 5), ("waited for", 2)]
    assert [(report.suite, report.problems) for report in reports] == [("held_out", 5), ("gsm8k", 2)]
    # The answer to every problem is kept beside the reports, for comparison with later versions.
    directory = run.records.run / "evals"
    assert {len(kept_answers(path)) for path in directory.glob("*-base.jsonl.gz")} == {2, 5}


def test_nothing_is_written_where_the_run_is_no_longer(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory was moved or removed while the suites were sampled."""

    def gone() -> None:
        raise OSError("moved")

    run.records.check_place = gone
    with pytest.raises(OSError, match=r"^moved$"):
        evaluate(run)
    assert not (run.records.run / "evals").exists()
    # Nor does whoever then stops it find a checkpoint there, which the next run would take for somebody else's.
    run.finished, run.learner, run.checkpoints = SimpleNamespace(step=1), None, None
    monkeypatch.setattr(loop, "learner_state", lambda _: {})
    with pytest.raises(OSError, match=r"^moved$"):
        loop.keep(run, Stopped())
    with pytest.raises(OSError, match=r"^moved$"):
        SftRun.save(run)


def test_without_suites_nothing_is_asked(run: Any) -> None:
    run.suites = []
    assert evaluate(run) == []


@pytest.mark.parametrize(("overrides", "evaluations"), [((), 1), (("eval.at_start=false",), 0)])
def test_the_first_evaluation_may_be_left_out(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], evaluations: int
) -> None:
    """The line of step 0 is written either way: it says which version samples."""
    measured: list[int] = []
    recorded: list[Any] = []

    def measure(run: Any) -> list[Any]:
        measured.append(run.step)
        return []

    monkeypatch.setattr(loop, "evaluate", measure)
    monkeypatch.setattr(loop, "finish", lambda run, metrics=None: None)
    monkeypatch.setattr(loop, "record", lambda run, metrics, reports: recorded.append(reports))
    run: Any = SimpleNamespace(config=make_config(*overrides), step=0)
    conclude(run, {})
    assert (len(measured), recorded) == (evaluations, [[]])


@pytest.mark.parametrize(("best", "shown"), [(None, False), (0, False), (3, True)])
def test_version_zero_is_not_offered_as_the_result(best: int | None, shown: bool, tmp_path: Path) -> None:
    """After a run that only lost accuracy the last lines said to serve version 0 as the trained model."""
    store = SimpleNamespace(pointed=lambda _: best, path_of=lambda version: tmp_path / f"v{version:06d}")
    run: Any = SimpleNamespace(
        records=SimpleNamespace(run=tmp_path),
        publisher=SimpleNamespace(store=store),
        finished=SimpleNamespace(version=5),
    )
    paths = summary_paths(run)
    assert paths["adapter"] == tmp_path / "v000005"
    assert ("best adapter" in paths) == shown
    assert gained_nothing(run) == (best == 0)
