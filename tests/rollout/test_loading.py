"""Loading libraries without garbage-collecting what they create."""

from __future__ import annotations

import gc
import weakref

import pytest

from rollout.loading import loading


def test_what_is_made_while_loading_is_never_looked_through() -> None:
    before = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
        made = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_what_was_let_go_of_before_does_not_stay() -> None:
    class Held:
        pass

    held = Held()
    held.itself = held  # type: ignore[attr-defined]
    seen = weakref.ref(held)
    del held
    with loading():
        pass
    assert seen() is None


def test_python_collects_again_where_loading_fails() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_who_collects_by_itself_still_does() -> None:
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
