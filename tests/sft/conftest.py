"""A finished supervised run, the embedded model's tokenizer, and an environment without a launcher's variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from transformers import AutoTokenizer

from rl_engine.sft.run import run_sft
from rollout.models import EMBEDDED_DIR
from tests.helpers.supervised import RUN, config_of


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of a launcher, which other tests in this process may have set and which would make
    accelerate wrap the model for several ranks."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rank-1 run of the command that was never interrupted."""
    directory = tmp_path_factory.mktemp("sft")
    assert run_sft(config_of(directory, *RUN)) == 0
    return directory / "run"


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED_DIR)
