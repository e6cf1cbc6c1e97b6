"""The output directory: whose it is, and what may go on in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rl_engine.config import Config, load_config
from rl_engine.config.file import ConfigError
from rl_engine.run.output import check_output, config_hash, sole_writer
from rl_engine.run.records import Records
from rl_engine.sft.__main__ import app as sft
from rl_engine.train.__main__ import app as train


def test_the_hash_covers_what_the_numbers_depend_on() -> None:
    plain = config_hash(load_config("quickstart.yaml"))
    for override in ("train.steps=7", "output_dir=elsewhere", "checkpoint.every=3", "eval.every=1"):
        assert config_hash(load_config("quickstart.yaml", [override])) == plain
    for override in ("seed=1", "lora.rank=2", "train.problems_per_step=8", "rewards.format_weight=0.5"):
        assert config_hash(load_config("quickstart.yaml", [override])) != plain


def made_run(run: Path, steps: int = 2) -> dict[str, bytes]:
    """An earlier run beside somebody's own files; what is in the directory."""
    config = load_config("quickstart.yaml", [f"output_dir={run}", "log.tensorboard=false"])
    records = Records(run, config)
    records.open(-1)
    for step in range(steps):
        records.metrics({"step": step})
    (run / "adapters" / "v000001").mkdir(parents=True)
    (run / "adapters" / "v000001" / "adapter_model.safetensors").write_bytes(b"weights")
    (run / "thesis.txt").write_text("mine\n")
    (run / "src").mkdir()
    (run / "src" / "code.py").write_text("mine = 1\n")
    return contents(run)


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = made_run(run)
    with sole_writer(run, overwrite=False):
        with pytest.raises(ConfigError, match="another process is training in"), sole_writer(run, overwrite=True):
            pass
        assert contents(run) == {**before, ".lock": b""}


def test_an_overwritten_run_goes_after_the_first_step(tmp_path: Path) -> None:
    """And nothing but what a run writes goes with it."""
    run = tmp_path / "run"
    before = made_run(run)
    with sole_writer(run, overwrite=True) as aside:
        assert aside == tmp_path / "run.old-1"
        assert contents(run) == {".lock": b"", "src/code.py": b"mine = 1\n", "thesis.txt": b"mine\n"}
        assert contents(aside) == {name: text for name, text in before.items() if name not in contents(run)}
        made_again = Records(run, load_config("quickstart.yaml", ["log.tensorboard=false", "seed=1"]))
        made_again.open(-1)
        made_again.metrics({"step": 0})
        made_again.metrics({"step": 1})
    assert not aside.exists()
    assert (run / "src" / "code.py").read_text() == "mine = 1\n"
    assert "seed: 1" in (run / "config.yaml").read_text()
    assert not (run / "adapters").exists()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_makes_no_step_gives_the_earlier_one_back(steps: int, tmp_path: Path) -> None:
    """A misspelt target, a model that is not there, an evaluation that fails: nothing was replaced."""
    run = tmp_path / "run"
    before = made_run(run)
    (tmp_path / "run.old-1").mkdir()  # of somebody else

    def fail(aside: Path | None) -> None:
        assert aside == tmp_path / "run.old-2"
        if steps:
            failing = Records(run, load_config("quickstart.yaml", ["log.tensorboard=false", "seed=1"]))
            failing.open(-1)
            failing.metrics({"step": 0})
            (run / "adapters" / "v000000").mkdir(parents=True)
        raise ValueError("misspelt")

    with pytest.raises(ValueError, match="misspelt"), sole_writer(run, overwrite=True) as aside:
        fail(aside)
    assert contents(run) == {**before, ".lock": b""}
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["run.old-1"]


@pytest.mark.parametrize("name", ["config.yaml", "adapters", "report.html", "evals"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_directory_without_our_mark_is_not_touched(
    name: str, overwrite: bool, make_config: Callable[..., Config]
) -> None:
    """Somebody's own folder with a file of a name that runs write."""
    config = make_config()
    run = Path(config.output_dir)
    run.mkdir()
    if "." in name:
        (run / name).write_text("mine\n")
    else:
        (run / name).mkdir()
    (run / "thesis.txt").write_text("mine\n")
    before = contents(run)
    with (
        pytest.raises(ConfigError, match=rf"holds {name} and is not marked as a run.*nothing in it is touched"),
        sole_writer(run, overwrite=overwrite),
    ):
        check_output(config, resume=False)
    assert contents(run) == {**before, ".lock": b""}


@pytest.mark.parametrize("command", [train, sft])
def test_continuing_and_replacing_contradict_each_other(command: typer.Typer) -> None:
    found = CliRunner().invoke(command, ["--config", "quickstart.yaml", "--resume", "--overwrite"])
    assert found.exit_code == 2
    assert "--resume continues the run in output_dir and --overwrite replaces it: give one of them" in found.stderr


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
