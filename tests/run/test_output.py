"""The output directory: whose it is, and what may go on in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rl_engine.config import Config, load_config
from rl_engine.config.file import ConfigError
from rl_engine.run.output import check_output, config_hash, sole_writer
from rl_engine.run.records import Records


def test_the_hash_covers_what_the_numbers_depend_on() -> None:
    plain = config_hash(load_config("quickstart.yaml"))
    for override in ("train.steps=7", "output_dir=elsewhere", "checkpoint.every=3", "eval.every=1"):
        assert config_hash(load_config("quickstart.yaml", [override])) == plain
    for override in ("seed=1", "lora.rank=2", "train.problems_per_step=8", "rewards.format_weight=0.5"):
        assert config_hash(load_config("quickstart.yaml", [override])) != plain


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with sole_writer(run, overwrite=False):
        (run / "config.yaml").write_text("seed: 0\n")
        with pytest.raises(ConfigError, match="another process is training in"), sole_writer(run, overwrite=True):
            pass
        assert (run / "config.yaml").exists()
    (run / "rollouts").mkdir()
    with sole_writer(run, overwrite=True):
        assert [path.name for path in run.iterdir()] == [".lock"]
    (run / "mine.txt").write_text("no run of ours\n")
    with sole_writer(run, overwrite=True):
        assert (run / "mine.txt").exists()


def test_a_run_that_lost_its_checkpoints_is_not_begun_anew(make_config: Callable[..., Config]) -> None:
    """Unless that is asked for."""
    config = make_config("checkpoint.every=2", "log.tensorboard=false")
    run = Path(config.output_dir)
    records = Records(run, config)
    records.open(-1)
    for step in (0, 1, 2):  # the first checkpoint could not be written
        records.metrics({"step": step})
    check_output(config, resume=True)
    records.metrics({"step": 3})
    with pytest.raises(ConfigError, match=r"3 steps on record and no checkpoint.*checkpoint.every is 2"):
        check_output(config, resume=True)
    (run / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        check_output(config, resume=True)
