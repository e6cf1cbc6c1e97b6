"""A run's directory as a finished run leaves it, without training, and what is in it."""

from __future__ import annotations

from pathlib import Path

from rl_engine.config import Config, load_config
from rl_engine.run.records import Records


def config_in(run: Path, *overrides: str) -> Config:
    return load_config("quickstart.yaml", [f"output_dir={run}", "log.tensorboard=false", *overrides])


def made_run(run: Path, steps: int = 2) -> dict[str, bytes]:
    """Make an earlier run beside somebody's own files → the contents of the directory."""
    records = Records(run, config_in(run))
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
