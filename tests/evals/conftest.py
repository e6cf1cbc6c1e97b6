"""Fixtures that the tests of evaluation share."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.adapters import AdapterStore
from tests.helpers.peft_adapters import write_peft


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A published version."""
    store = AdapterStore(tmp_path / "adapters")
    return store.publish(7, lambda scratch: write_peft(scratch), {"rank": 2, "base_model": "embedded"}).path
