"""How a worker call that did not return a result is classified."""

from __future__ import annotations

from typing import NoReturn

import pytest
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from rollout.engine import NanError
from rollout.pool.worker_handle import KILLED, answer_of


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (RayError("The node died.\nIt had no memory."), "it died or its answer was lost: The node died."),
        (RayError(""), "it died or its answer was lost: RayError"),
        (ActorDiedError(), f"it died: {KILLED}"),
    ],
    ids=["advice", "nothing", "killed"],
)
def test_a_lost_answer_is_reported_even_where_ray_says_nothing(
    said: RayError, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(handle: object, timeout: float) -> NoReturn:
        raise said

    monkeypatch.setattr(ray, "get", fails)
    assert answer_of(None) == (None, told)


def test_a_model_that_computes_nan_is_no_fault_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replacement computed the same NaN, and the run ended only after the last of them was lost."""

    def fails(handle: object, timeout: float) -> NoReturn:
        raise RayTaskError("generate", "Traceback", NanError("the sampler computed NaN with base: its weights"))

    monkeypatch.setattr(ray, "get", fails)
    with pytest.raises(NanError, match=r"^the sampler computed NaN with base: its weights$"):
        answer_of(None)
