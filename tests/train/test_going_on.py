"""The command on a directory that already holds a run: what continues, what is refused, and what is restored.

The engine is scripted; everything else is the real command.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from tests.drills.equality import timeless
from tests.helpers import forked
from tests.helpers.answering_engine import UNCHECKED, in_place_of_vllm
from tests.helpers.made_run import contents

SMALL = (
    "data.source=jsonl",
    "data.path=sums.jsonl",
    "train.problems_per_step=2",
    "sampling.n=4",
    "eval.every=0",
    "eval.limit=4",
    "rewards.workers=1",
    "log.tensorboard=false",
    *UNCHECKED,
)


def command(directory: Path, *arguments: str) -> tuple[int, str]:
    one_core = {"OMP_NUM_THREADS": "1"}
    return forked.train(directory, *SMALL, *arguments, environment=one_core, prepare=in_place_of_vllm)


def write_sums(path: Path, first: int) -> None:
    rows = [
        {"id": str(i), "problem": f"{first + i}+{i}-3=?", "answer": str(first + 2 * i - 3), "level": str(i % 2)}
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where `runs/long` was planned for three steps, and `runs/short` for two."""
    place = tmp_path_factory.mktemp("place")
    write_sums(place / "sums.jsonl", 3)
    for name, steps in (("long", 3), ("short", 2)):
        code, output = command(place, f"output_dir=runs/{name}", f"train.steps={steps}")
        assert code == 0, output
    return place


def test_a_run_made_longer_is_the_one_planned_so(place: Path) -> None:
    short, long = place / "runs" / "short", place / "runs" / "long"
    (short / "evals" / "mine.json").write_text("{")  # what cannot be shown fails no run that is done
    code, output = command(place, "output_dir=runs/short", "train.steps=3", "rollout.max_kl=2e9", "--resume")
    assert code == 0, output
    assert "rollout.max_kl was 1000000000.0 and is 2000000000.0; train.steps was 2 and is 3" in output
    assert "resumed after step 2" in output
    assert f"warning: no report was written: {Path('runs/short/evals/mine.json')} is not JSON" in output
    assert timeless(short) == timeless(long)
    for version in sorted((long / "adapters").glob("v*")):
        name = "adapter_model.safetensors"
        assert (version / name).read_bytes() == (short / "adapters" / version.name / name).read_bytes()
    for path in sorted((long / "rollouts").iterdir()):
        assert gzip.decompress(path.read_bytes()) == gzip.decompress((short / "rollouts" / path.name).read_bytes())
    (noted,) = [json.loads(line) for line in (short / "resumed.jsonl").read_text().splitlines()]
    assert noted["changed"]["train.steps"] == {"from": 2, "to": 3}
    assert "eval/held_out/avg" in noted["evaluated"]


def test_a_data_file_that_has_changed_is_refused_on_resume(place: Path) -> None:
    before = contents(place / "runs" / "long")
    write_sums(place / "sums.jsonl", 4)
    code, output = command(place, "output_dir=runs/long", "train.steps=4", "--resume")
    write_sums(place / "sums.jsonl", 3)
    assert code == 2
    assert "data.path (sums.jsonl) has changed since step 3 of runs/long" in output
    assert contents(place / "runs" / "long") == before


def test_a_replacement_that_cannot_begin_leaves_the_earlier_run(place: Path) -> None:
    before = contents(place / "runs" / "long")
    code, output = command(place, "output_dir=runs/long", "train.steps=3", "lora.targets=[q_pro]", "--overwrite")
    assert code == 2
    assert "this run made no step: the earlier one is back in runs/long" in output
    assert contents(place / "runs" / "long") == before
    assert {path.name for path in (place / "runs").iterdir()} == {"long", "short"}


def test_a_dry_run_says_what_the_options_would_do(place: Path) -> None:
    before = contents(place / "runs" / "long")
    code, output = command(place, "output_dir=runs/long", "train.steps=3", "seed=4", "--overwrite", "--dry-run")
    assert (code, "(3 steps, other settings: seed was 0 and is 4) to runs/long.old-1" in output) == (0, True), output
    assert contents(place / "runs" / "long") == before


def test_a_resumed_run_needs_no_adapter_to_start_from(place: Path) -> None:
    """A resumed run does not even read that adapter, because it continues from its checkpoint. A new run needs it."""
    first, run, start = place / "first", place / "runs" / "more", "lora.start_from=first"
    shutil.copytree(place / "runs" / "long" / "adapters" / "v000003", first)
    code, output = command(place, "output_dir=runs/more", "train.steps=2", start)
    assert code == 0, output
    whole = place / "runs" / "whole"
    shutil.copytree(run, whole)
    shutil.rmtree(run / "checkpoints" / "step000002")
    (first / "adapter_config.json").write_text('{"peft_type": "BOFT"}')
    code, output = command(place, "output_dir=runs/other", start)
    assert (code, output.count("\n")) == (2, 1)
    assert "lora.start_from: " in output
    shutil.rmtree(first)
    code, output = command(place, "output_dir=runs/more", "train.steps=2", start, "--resume", "--dry-run")
    assert code == 0, output
    code, output = command(place, "output_dir=runs/more", "train.steps=2", start, "--resume")
    assert code == 0, output
    assert "resumed after step 1" in output
    assert timeless(run) == timeless(whole)
    weights = Path("adapters") / "v000002" / "adapter_model.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    shutil.rmtree(run / "checkpoints")
    code, output = command(place, "output_dir=runs/more", "train.steps=2", start, "--resume")
    assert code == 2
