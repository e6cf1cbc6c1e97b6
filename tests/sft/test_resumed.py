"""An interrupted supervised run ends exactly like an uninterrupted one."""

from __future__ import annotations

import errno
import itertools
import math
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from rl_engine.config.file import ConfigError
from rl_engine.config.sft import SftConfig
from rl_engine.run.output import Beginning
from rl_engine.run.records import read_metrics
from rl_engine.sft.checks import check_quickly
from rl_engine.sft.examples import Example
from rl_engine.sft.loop import SftRun
from rl_engine.sft.run import assemble, run_sft
from rl_engine.sft.trainer import log_loss
from rollout.stopping import StopRequest
from tests.drills.equality import timeless
from tests.helpers.supervised import RUN, config_of, run_heard


class _Interrupt(TrainerCallback):
    def __init__(self, step: int = 2) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def interrupted(config: SftConfig, tokenizer: Any, stop: StopRequest, *, resume: bool, step: int = 2) -> SftRun:
    """A run that is asked to stop after the given step."""
    run = assemble(config, tokenizer, stop, resume=resume)
    # In front, to act before the run's own callback looks for a stop.
    run.trainer.callback_handler.callbacks.insert(0, _Interrupt(step))
    return run


def test_a_full_disk_is_not_told_as_a_moved_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "step000001")

    monkeypatch.setattr(SFTTrainer, "train", fill)
    with pytest.raises(OSError, match="No space left on device"):
        run_heard(config_of(tmp_path, *RUN))


def test_an_interrupted_run_ends_bit_for_bit_as_one_that_was_not(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, *RUN)
    with monkeypatch.context() as patch:
        patch.setattr("rl_engine.sft.run.assemble", interrupted)
        assert run_heard(config) == 128 + signal.SIGINT
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 2]
    with pytest.raises(ConfigError, match=r"cannot be resumed.*optim\.lr was .* and is 0\.001"):
        run_sft(config_of(tmp_path, *RUN, "optim.lr=1e-3"), beginning=Beginning(resume=True))
    for _ in ("to its end", "and then once more"):
        assert run_sft(config, beginning=Beginning(resume=True)) == 0
    ends = [path / "adapters" / "v000006" / "adapter_model.safetensors" for path in (finished, tmp_path / "run")]
    assert ends[0].read_bytes() == ends[1].read_bytes()

    assert timeless(finished) == timeless(tmp_path / "run")


def test_a_resumed_run_needs_no_adapter_to_start_from(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "adapters" / "v000006", tmp_path / "first")
    settings = (*RUN, f"lora.start_from={tmp_path / 'first'}", "checkpoint.every=1")
    config = config_of(tmp_path, *settings)
    assert run_sft(config_of(tmp_path, *settings, f"output_dir={tmp_path / 'whole'}")) == 0
    with monkeypatch.context() as patch:
        patch.setattr("rl_engine.sft.run.assemble", interrupted)
        assert run_heard(config) == 128 + signal.SIGINT
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(ConfigError, match=r"^lora.start_from: .*first is not an adapter"):
        check_quickly(config)
    check_quickly(config, resume=True)
    assert run_sft(config, beginning=Beginning(resume=True)) == 0
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "run")


@pytest.mark.parametrize("measurement", [0, 1, 2])
def test_a_stopped_measurement_is_made_when_the_run_goes_on(
    measurement: int,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped before the first step, midway or after the last, a run loses no line of metrics and writes none twice."""
    config = config_of(tmp_path, *RUN, "checkpoint.every=1")
    asked = []

    def stopped(trainer: Any, examples: list[Example]) -> float:
        asked.append(len(examples))
        if len(asked) == measurement + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return log_loss(trainer, examples)

    with monkeypatch.context() as patch:
        patch.setattr("rl_engine.sft.loop.log_loss", stopped)
        assert run_heard(config) == 128 + signal.SIGTERM
    output = capsys.readouterr().out
    if measurement == 0:
        assert "stopped as asked before the first step: nothing was trained" in output
        assert not (tmp_path / "run" / "checkpoints").exists()
    else:
        steps = [int(line["step"]) for line in read_metrics(finished) if "test/log_loss" in line]
        assert f"stopped after step {steps[measurement]} as asked, and saved" in output
        assert steps[measurement] not in [line["step"] for line in read_metrics(tmp_path / "run")]
    for _ in ("to its end", "and then once more"):
        assert run_sft(config, beginning=Beginning(resume=True)) == 0
    assert timeless(finished) == timeless(tmp_path / "run")


def test_a_run_made_longer_is_the_one_planned_so(tmp_path: Path) -> None:
    """The run keeps checkpoints, the last of which is after its last step."""
    settings = (*RUN, "optim.schedule=constant", "checkpoint.every=2")
    assert run_sft(config_of(tmp_path, *settings, f"output_dir={tmp_path / 'long'}")) == 0
    assert run_sft(config_of(tmp_path, *settings, "train.steps=3")) == 0
    assert run_sft(config_of(tmp_path, *settings), beginning=Beginning(resume=True)) == 0
    ends = [
        path / "adapters" / "v000006" / "adapter_model.safetensors" for path in (tmp_path / "long", tmp_path / "run")
    ]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.parametrize("broken", [{1}, {2}])
def test_an_update_left_out_is_left_out_of_a_resumed_run_too(
    broken: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam counts only the updates that were made. The checkpoint stores that count, even before the first update."""
    compute: Any = SFTTrainer.compute_loss
    calls = itertools.count(1)

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        return loss * math.inf if next(calls) in broken else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    settings = ("train.steps=4", "data.test_size=0", "checkpoint.every=1", "checkpoint.keep=9", "optim.lr=1e-2")
    (tmp_path / "resumed").mkdir()
    whole, resumed = config_of(tmp_path, *settings), config_of(tmp_path / "resumed", *settings)
    assert run_sft(whole) == 0
    calls = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr("rl_engine.sft.run.assemble", partial(interrupted, step=max(broken)))
        assert run_heard(resumed) == 128 + signal.SIGINT
    assert run_sft(resumed, beginning=Beginning(resume=True)) == 0
    ends = [Path(one.output_dir) / "adapters/v000004/adapter_model.safetensors" for one in (whole, resumed)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
