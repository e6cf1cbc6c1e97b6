"""Which losses count as one incident, and when prompts are to blame."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.config import SamplingConfig
from rollout.pool.incidents import INCIDENTS_TO_BLAME, LONGEST_PAUSE_S, TOGETHER_S, WINDOW_S, Incidents
from rollout.types import Problem, Prompt
from rollout.work_items import PromptBatch, WorkItem, split


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def items(count: int) -> list[WorkItem]:
    prompts = [Prompt(problem=Problem(id=str(i), text="", answer=""), text="", token_ids=(1,)) for i in range(count)]
    return split(PromptBatch(prompts, SamplingConfig(), None, [""] * count), 1).items


def test_a_machine_with_all_its_workers_is_one_incident() -> None:
    """Eight busy workers and four idle ones are lost, and each of the eight items counts once."""
    incidents, given = Incidents(Clock()), items(8)
    for item in given:
        incidents.lost("a", "it died", [item])
    for _ in range(4):
        incidents.lost("a", "it died")
    assert incidents.in_a_row == ["it died"]
    assert incidents.lost("a", "it died").workers == 13
    assert not any(incidents.blames(item, {"a", "b"}) for item in given)


def test_what_was_lost_together_is_suspected_first() -> None:
    """Items that were lost together become suspects before any of them could be blamed."""
    incidents, (poison, other) = Incidents(Clock()), items(2)
    for _ in range(INCIDENTS_TO_BLAME - 1):
        assert not incidents.suspects(poison)
        incidents.lost("a", "it died", [poison, other])
        assert not incidents.blames(poison, {"a"})
    assert incidents.suspects(poison)
    assert incidents.suspects(other)
    incidents.sampled(other)
    assert not incidents.suspects(other)
    incidents.lost("a", "it died", [poison])
    assert incidents.blames(poison, {"a"})


def test_other_machines_and_later_losses_are_other_incidents() -> None:
    clock = Clock()
    incidents = Incidents(clock)
    incidents.lost("a", "one")
    incidents.lost("b", "two")
    clock.now += TOGETHER_S + 1
    incidents.lost("a", "three")
    assert incidents.in_a_row == ["one", "two", "three"]
    clock.now += WINDOW_S
    assert incidents.in_a_row == []


def test_prompts_that_end_any_worker_are_blamed_however_fast() -> None:
    """On a single machine there is no other one to compare with; an item is never blamed for the losses of others."""
    incidents, (poison, other) = Incidents(Clock()), items(2)
    for count in range(1, INCIDENTS_TO_BLAME + 1):
        incidents.lost("a", "it died", [poison])
        incidents.lost("a", "it died")
        assert bool(incidents.blames(poison, {"a"})) == (count == INCIDENTS_TO_BLAME)
    assert not incidents.blames(other, {"a"})
    assert len(incidents.in_a_row) == INCIDENTS_TO_BLAME


def test_a_machine_that_is_bad_does_not_make_its_prompts_bad() -> None:
    """On several machines, an item is to blame only after it has cost workers on as many of them as are needed."""
    incidents, (item,) = Incidents(Clock()), items(1)
    for _ in range(2 * INCIDENTS_TO_BLAME):
        incidents.lost("bad", "it died", [item])
    assert not incidents.blames(item, {"bad", "b", "c", "d"})
    for node in ("b", "c"):
        assert not incidents.blames(item, {"bad", "b", "c", "d"})
        incidents.lost(node, "it died", [item])
    assert incidents.blames(item, {"bad", "b", "c", "d"})


def test_an_item_that_comes_back_is_blameless_and_ends_the_row() -> None:
    incidents, (item,) = Incidents(Clock()), items(1)
    for _ in range(INCIDENTS_TO_BLAME - 1):
        incidents.lost("a", "it died", [item])
    incidents.sampled(item)
    assert incidents.in_a_row == []
    incidents.lost("a", "it stumbled", [item])
    assert incidents.in_a_row == ["it stumbled"]
    assert not incidents.blames(item, {"a"})


def test_the_pause_grows_with_incidents_and_is_forgotten() -> None:
    clock = Clock()
    incidents = Incidents(clock)
    pauses = []
    for _ in range(9):
        incidents.lost("a", "it died")
        clock.now += TOGETHER_S + 1
        pauses.append(incidents.pause_s())
    assert pauses == [0, 1, 3, 7, 15, 31, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    clock.now += WINDOW_S
    assert incidents.pause_s() == 0
