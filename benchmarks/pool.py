"""Seconds per step and tokens per second: sampling in process, and in one and two Ray workers, on-policy and one step
ahead.

    python -m benchmarks.pool [--rounds 2] [--steps 6] [--output docs/benchmarks/pool.json]

Each arm is a run of `python -m rl_engine.train` with the quickstart's model, problems and seeds, without evaluations;
seconds are taken from its metrics.jsonl. A round is one run of every arm, one after the other. The first two steps of
each run and the last are left out: the first warms up, the second was sampled together with it if sampling runs ahead,
and in the last nothing is left to sample ahead. A step's tokens per second are divided by those of the same step in
process, in the same round.

Before the runs, the costs of the parts of sampling are measured for `python -m benchmarks.pool_model`
(`benchmarks/pool_parts.py`).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoTokenizer

from benchmarks.pool_measured import ARMS, IN_PROCESS, MEASURED, MOST_STALE, PHASES, Measured, MeasuredRun, read_run
from benchmarks.pool_parts import Parts, Question, measure_parts
from rl_engine.config import Config, load_config
from rl_engine.plan.card import settle_precision
from rl_engine.sweep.report import environment
from rollout.engine import EngineSettings
from rollout.models import locate_model
from rollout.prompts.problems import load_problems
from rollout.prompts.renderer import Renderer

CONFIG = "quickstart.yaml"
LONGEST_RUN_S = 3600
LAST = "2 workers, k = 1"


def parts_of(config: Config, repeats: int) -> Parts:
    """Measure the parts for the configuration that the arms run."""
    model = locate_model(config.model.name)
    problems = load_problems(config.data, split="train", seed=config.seed).problems[: config.train.problems_per_step]
    return measure_parts(
        Question(
            engine=EngineSettings(
                model=model,
                dtype=config.model.precision,
                max_model_len=config.longest_sequence,
                lora_rank=config.lora.rank,
                kv_cache_gib=config.rollout.kv_cache_gib,
            ),
            prompts=Renderer(AutoTokenizer.from_pretrained(model), config.prompt).render_all(problems),
            samples=config.sampling.n,
            prompts_per_piece=config.training_piece,
            cpus_per_worker=config.rollout.cpus_per_worker,
            repeats=repeats,
        )
    )


def run_arm(name: str, settings: list[str], directory: Path) -> None:
    """Run an arm in its own process. If it fails, raises `SystemExit` with the end of its output."""
    command = [sys.executable, "-m", "rl_engine.train", "--config", CONFIG, "--overwrite", f"output_dir={directory}"]
    said = subprocess.run(
        [*command, *settings, *ARMS[name].overrides()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_RUN_S,
    )
    if said.returncode:
        raise SystemExit(f"{name} failed:\n{said.stdout[-4000:]}")


def run_arms(rounds: int, settings: list[str]) -> tuple[list[MeasuredRun], list[list[list[int]]]]:
    """Return (all runs, the completion lengths of one in-process run)."""
    runs: list[MeasuredRun] = []
    lengths: list[list[list[int]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(1, rounds + 1):
            for name in ARMS:
                run_arm(name, settings, Path(scratch) / "run")
                found, of_run = read_run(Path(scratch) / "run")
                runs.append(MeasuredRun(arm=name, round=number, steps=found))
                if name == IN_PROCESS and not lengths:
                    lengths = of_run
                said = ", ".join(f"{step.step_s:.2f}" for step in found)
                print(f"round {number}, {name}: steps of {said} s", flush=True)
    return runs, lengths


def table(measured: Measured) -> list[str]:
    """One row per arm: medians over steps and rounds."""
    titles = ("waits", "grades", "learns", "syncs", "step, s", "tokens/s", "of in process", "lowest … highest")
    rows = [f"{'':18}" + "".join(f"{title:>{max(10, len(title) + 2)}}" for title in titles)]
    for name in ARMS:
        cells = [f"{measured.median(name, lambda step: getattr(step, phase)):10.2f}" for phase in PHASES]  # noqa: B023
        step_s = measured.median(name, lambda step: step.step_s)
        tokens_per_s = measured.median(name, lambda step: step.tokens_per_s)
        speeds = measured.speeds(name)
        cells += [f"{step_s:10.2f}{tokens_per_s:10,.0f}{statistics.median(speeds):15.2f}"]
        cells += [f"{f'{min(speeds):.2f} … {max(speeds):.2f}':>18}"]
        rows.append(f"{name:18}" + "".join(cells))
    return rows


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each arm.")] = 2,
    steps: Annotated[
        int, typer.Option(min=MOST_STALE * 2 + 2, help="Steps of each run; all but three are measured.")
    ] = 6,
    problems: Annotated[int, typer.Option(min=1, help="The runs' train.problems_per_step.")] = 64,
    prompts_per_piece: Annotated[int, typer.Option(min=1, help="The runs' rollout.prompts_per_piece.")] = 16,
    cpus_per_worker: Annotated[int, typer.Option(min=1, help="The runs' rollout.cpus_per_worker.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Batches of each kind when the parts are measured.")] = 3,
    output: Annotated[Path, typer.Option(help="JSON file of everything measured.")] = MEASURED,
) -> None:
    """Measure the parts, then the arms in turn; write everything to a file and print one row per arm."""
    settings = [
        *(f"train.steps={steps}", f"train.problems_per_step={problems}", f"checkpoint.every={steps}"),
        *(f"rollout.prompts_per_piece={prompts_per_piece}", f"rollout.cpus_per_worker={cpus_per_worker}"),
        *("eval.suites=[]", "log.tensorboard=false", "rollout.kv_cache_gib=0.5"),
    ]
    config = settle_precision(load_config(CONFIG, settings), "cuda" if torch.cuda.is_available() else "cpu")
    parts = parts_of(config, repeats)
    print(parts.describe(), flush=True)
    runs, lengths = run_arms(rounds, settings)
    measured = Measured(
        environment=environment(),
        cores=len(os.sched_getaffinity(0)),
        cpus_per_worker=cpus_per_worker,
        prompts_per_piece=prompts_per_piece,
        parts=parts,
        lengths=lengths,
        runs=tuple(runs),
    )
    measured.write(output)
    print("\n".join(table(measured)))
    print(f"{LAST} to in process, tokens a second ratio {statistics.median(measured.speeds(LAST)):.2f}")


if __name__ == "__main__":
    typer.run(main)
