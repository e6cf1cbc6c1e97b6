"""How a worker call that did not return a result is classified."""

from __future__ import annotations

from typing import NoReturn

import pytest
import ray
from ray.exceptions import RayError

from rollout.pool.worker_handle import answer_of


@pytest.mark.parametrize(
    ("said", "told"),
    [("The node died.\nIt had no memory.", "The node died."), ("", "RayError")],
    ids=["advice", "nothing"],
)
def test_a_lost_answer_is_reported_even_where_ray_says_nothing(
    said: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(handle: object, timeout: float) -> NoReturn:
        raise RayError(said)

    monkeypatch.setattr(ray, "get", fails)
    assert answer_of(None) == (None, f"it died or its answer was lost: {told}")
