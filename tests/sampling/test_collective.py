"""Ranks that each do a share of the same work continue together or stop together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.launch import group
from rl_engine.config import load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.collective import check_command, check_shared, together
from rl_engine.sampling.data import prepare
from rollout.engine import EngineError
from rollout.stopping import Stopped, StopRequest
from tests.helpers.thread_ranks import ThreadRank, on_each

Rank = tuple[Ranks, StopRequest]


def outcomes(share: Callable[[Ranks, StopRequest], object]) -> list[object]:
    """The outcome on each of two ranks."""

    def act(rank: Rank) -> str:
        with together(*rank):
            share(*rank)
        return "went on"

    first, second = ThreadRank.both()
    return on_each(((first, StopRequest()), (second, StopRequest())), act, (Stopped, EngineError, OSError))


def stopped(ranks: Ranks, stop: StopRequest) -> None:
    if not ranks.is_main:
        stop.record(15)
        raise Stopped


def noted(ranks: Ranks, stop: StopRequest) -> None:
    if not ranks.is_main:
        stop.record(15)


def failed(ranks: Ranks, stop: StopRequest) -> None:
    if ranks.is_main:
        raise OSError("no space")


def failed_as_the_other_stopped(ranks: Ranks, stop: StopRequest) -> None:
    failed(ranks, stop)
    stopped(ranks, stop)


def test_ranks_go_on_when_all_have_done_their_share() -> None:
    assert outcomes(lambda *_: None) == ["went on"] * 2


@pytest.mark.parametrize("share", [stopped, noted, failed_as_the_other_stopped])
def test_all_ranks_stop_where_one_was_asked_to(share: Callable[[Ranks, StopRequest], None]) -> None:
    assert outcomes(share) == ["Stopped()"] * 2


def test_a_rank_that_fails_leaves_nobody_waiting() -> None:
    first, second = outcomes(failed)
    assert first == "OSError('no space')"
    assert "another rank failed" in str(second)


def test_a_rank_alone_raises_what_it_meets() -> None:
    alone = Ranks(0, 1, torch.device("cpu"))
    with pytest.raises(OSError, match="no space"), together(alone, StopRequest()):
        raise OSError("no space")
    with pytest.raises(Stopped), together(alone, StopRequest(signum=2)):
        pass


def test_a_directory_that_a_rank_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "SEEN_WITHIN_S", 0.0)
    (here := tmp_path / "run").mkdir()

    def found(places: tuple[Path, Path]) -> list[str]:
        return on_each(ThreadRank.both(), lambda rank: check_shared(places[rank.rank], rank), (ConfigError,))

    assert found((here, here)) == [None, None]
    for message in found((here, tmp_path / "elsewhere" / "run")):
        assert "output_dir: rank 1 does not see what rank 0 writes" in message
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ([["seed=5"]], {}, "seed is 0 on rank 0 and 5 on rank 1: start every rank with the same command"),
        ([[]], {"resume": True}, "--resume is false on rank 0 and true on rank 1"),
        ([[], ["output_dir=runs/more"]], {}, "--config is 1 on rank 0 and 2 on rank 1"),
    ],
)
def test_ranks_started_by_different_commands_are_refused(
    settings: list[list[str]], options: dict[str, bool], said: str
) -> None:
    """One that resumed and one that began waited half an hour for each other; other settings were ignored."""
    alike = [load_config("quickstart.yaml", [])], {"resume": False}
    other = [load_config("quickstart.yaml", given) for given in settings], {**alike[1], **options}

    def check(rank: Ranks) -> None:
        check_command(rank, *(alike if rank.is_main else other))

    for message in on_each(ThreadRank.both(), check, (ConfigError,)):
        assert said in str(message)
    assert on_each(ThreadRank.both(), lambda rank: check_command(rank, *other), (ConfigError,)) == [None, None]


def test_ranks_read_the_same_problems(tmp_path: Path) -> None:
    def read(rank: Ranks) -> object:
        file = tmp_path / f"{rank.rank}.jsonl"
        rows = [{"problem": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(3 - rank.rank)]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        config = load_config("quickstart.yaml", ["data.source=jsonl", f"data.path={file}"])
        unused: Any = None
        return prepare(config, unused, unused, rank)

    for message in on_each(ThreadRank.both(), read, (ConfigError,)):
        assert "data: rank 1 reads something else there than rank 0" in message
