"""The command itself, on the real engines: what a run leaves behind, that it resumes and repeats bit for bit, and how
it refuses what it cannot run."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rewards import Verdict
from rl_engine.report.plot import plot_run
from rl_engine.run.checkpoint import Checkpoints
from rl_engine.run.origin.starts import STARTS
from rl_engine.run.records import read_metrics
from rollout.adapters import AdapterError, AdapterStore, read_manifest, sha256_of
from rollout.models import EMBEDDED_DIR
from tests.drills.equality import timeless
from tests.helpers import forked, forked_commands
from tests.helpers.ports import meeting_place
from tests.helpers.precision import assert_same_adam_steps

ROOT = Path(__file__).parents[2]
STEPS = 4
OVERRIDES = (
    f"train.steps={STEPS}",
    "train.problems_per_step=6",
    "sampling.n=4",
    "eval.every=2",
    "eval.limit=16",
    "checkpoint.every=2",
    # Non-default settings, so that resuming is tested with them.
    "learner.epochs_per_step=2",
    "optim.schedule=cosine",
    "optim.weight_decay=0.01",
    "rollout.kv_cache_gib=0.25",
)
STEP_METRICS = {
    "step",
    "reward/mean",
    "reward/accuracy",
    "completion/tokens_mean",
    "completion/truncated_frac",
    "groups/no_signal_frac",
    "policy/entropy",
    "policy/kl_base",
    "sampler/kl",
    "sampler/kl_v1",
    "sampler/kl_error",
    "sampler/tokens",
    "sampler/kl_v3",
    "sampler/logprob_gap_max",
    "sampler/beyond_frac",
    "reward/unscored_frac",
    "ratio/p01",
    "ratio/p50",
    "ratio/p99",
    "ratio/max",
    "ratio/ess_frac",
    "loss/clip_low_frac",
    "loss/clip_high_frac",
    "advantage/std",
    "advantage/max_abs",
    "loss",
    "grad_norm",
    "lr",
    "updates/skipped",
    "adapter/version",
    "time/rollout_s",
    "time/grade_s",
    "time/learn_s",
    "time/sync_s",
    "time/step_s",
    "throughput/tokens_per_s",
    "memory/rollout_gib",
    "memory/learn_gib",
    "memory/sync_gib",
}


SECRETS = {"HF_TOKEN": "hf_do_not_write_this", "WANDB_API_KEY": "wandb-do-not-write-this"}


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command in a separate process that cannot reach the network."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "no_network"))),
        "NETWORK_ATTEMPTS": str(directory / "network-attempts"),
        **SECRETS,
    }
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HF_HUB_OFFLINE"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "rl_engine.train", "--config", "quickstart.yaml", *arguments]
    return subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(directory: Path, *arguments: str) -> tuple[int, str]:
    return forked.train(directory, *arguments, environment=SECRETS)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of four steps."""
    directory = tmp_path_factory.mktemp("whole")
    process = start(directory, *OVERRIDES)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (directory / "output.txt").write_text(output)
    return directory


@pytest.fixture(scope="session")
def run_dir(whole_run: Path) -> Path:
    return whole_run / "runs" / "quickstart"


pytestmark = pytest.mark.engine


def test_a_run_never_tries_to_leave_the_machine(whole_run: Path, run_dir: Path) -> None:
    assert run_dir.is_dir()
    assert not (whole_run / "network-attempts").exists()


def test_no_secret_of_the_environment_is_in_what_a_run_leaves(whole_run: Path) -> None:
    files = [path for path in whole_run.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path


def test_metrics_have_the_promised_names_on_every_step(run_dir: Path) -> None:
    lines = read_metrics(run_dir)
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    for line in lines[1:]:
        assert not STEP_METRICS - line.keys()
        verdicts = [line[f"reward/verdict/{verdict}"] for verdict in Verdict]
        assert sum(verdicts) == pytest.approx(1.0)
        assert line["sampler/logprob_gap_max"] < 1e-3
        assert line["lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * (line["step"] - 1) / STEPS)))
    for line in lines[::2]:
        assert 0 <= line["eval/held_out/low"] <= line["eval/held_out/avg"] <= line["eval/held_out/high"] <= 1
        assert line["eval/held_out/tokens_mean"] > 0
    assert "eval/held_out/avg" not in lines[1]


def test_the_run_directory_is_the_contract(run_dir: Path) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert (config["train"]["steps"], config["lora"]["rank"], config["output_dir"]) == (STEPS, 1, "runs/quickstart")
    assert (run_dir / "adapters" / "latest").resolve() == (run_dir / "adapters" / f"v{STEPS:06d}").resolve()
    for version in range(STEPS + 1):
        manifest = read_manifest(run_dir / "adapters" / f"v{version:06d}")
        assert (manifest["version"], manifest["base_model"]) == (version, "embedded")
        assert manifest["parent"] == (version - 1 if version else None)
    scores = {
        int(line["adapter/version"]): line["eval/held_out/avg"]
        for line in read_metrics(run_dir)
        if "eval/held_out/avg" in line
    }
    assert AdapterStore(run_dir / "adapters").pointed("best") == max(scores, key=lambda at: (scores[at], at > 0))
    for version, score in scores.items():
        report = json.loads((run_dir / "evals" / f"held_out-policy-v{version:06d}.json").read_text())
        vouched = run_dir / "adapters" / f"v{version:06d}" / "manifest.json"
        assert (report["avg"], report["adapter_sha256"]) == (score, sha256_of(vouched))
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step000002", "step000004"]
    assert len(list((run_dir / "evals").glob("held_out-policy-v*.json"))) == 3
    assert (run_dir / "curves.png").stat().st_size > 10_000
    assert list((run_dir / "tensorboard").iterdir())


def test_rollouts_hold_all_completions_and_add_up_to_the_metrics(run_dir: Path) -> None:
    for step, line in enumerate(read_metrics(run_dir)[1:], 1):
        with gzip.open(run_dir / "rollouts" / f"step{step:06d}.jsonl.gz", "rt") as file:
            records = [json.loads(text) for text in file]
        assert len(records) == 24
        assert sum(r["reward"] for r in records) / 24 == pytest.approx(line["reward/mean"])
        assert sum(r["completion_tokens"] for r in records) / 24 == pytest.approx(line["completion/tokens_mean"])
        assert {r["adapter"] for r in records} == {f"policy-v{step - 1:06d}"}
        for record in records:
            right = record["completion"].endswith(f"\\boxed{{{record['reference']}}}")
            assert (record["verdict"] == "correct") == right


def test_the_run_ends_with_before_and_after_and_where_things_are(whole_run: Path) -> None:
    output = (whole_run / "output.txt").read_text()
    assert "held_out  accuracy" in output
    assert "→" in output
    for name in ("runs/quickstart", "adapters/v000004", "curves.png", "metrics.jsonl"):
        assert name in output
    assert "Traceback" not in output


def test_every_published_version_loads_with_plain_peft(run_dir: Path) -> None:
    ids = torch.tensor([[12, 5, 13, 7, 8, 3]])
    logits = []
    for version in range(STEPS + 1):
        base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, str(run_dir / "adapters" / f"v{version:06d}"))
        with torch.no_grad():
            logits.append(model(ids).logits)
            with model.disable_adapter():
                plain = model(ids).logits
        assert torch.equal(logits[-1], plain) == (version == 0)
    assert not torch.equal(logits[1], logits[-1])


def digests(run_directory: Path) -> dict[str, str]:
    return {
        path.parent.name: sha256_of(path)
        for path in sorted(run_directory.glob("adapters/v*/adapter_model.safetensors"))
    }


@pytest.fixture(scope="session")
def interrupted_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """The same run, stopped by SIGTERM after its first step, between two checkpoints."""
    directory = tmp_path_factory.mktemp("interrupted")
    log = directory / "output.txt"
    with contextlib.chdir(directory):
        process = forked_commands.start("rl_engine.train", ["--config", "quickstart.yaml", *OVERRIDES], log)
    metrics = directory / "runs" / "quickstart"
    while len(read_metrics(metrics)) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    return directory, process.wait(), log.read_text()


def test_a_run_stopped_by_sigterm_resumes_bit_for_bit(run_dir: Path, interrupted_run: tuple[Path, int, str]) -> None:
    """It saves, exits, and resumes to the same adapters, optimizer state and metrics."""
    directory, code, output = interrupted_run
    interrupted = directory / "runs" / "quickstart"
    assert code == 128 + signal.SIGTERM, output
    stopped = len(read_metrics(interrupted)) - 1
    assert 1 <= stopped < STEPS
    assert f"stopped after step {stopped}" in output
    assert "Traceback" not in output
    code, output = run(directory, *OVERRIDES, "--resume")
    assert code == 0, output
    assert f"resumed after step {stopped}" in output
    assert digests(interrupted) == digests(run_dir)
    # Adam's moments and the random state are equal too.
    last = Path("checkpoints") / f"step{STEPS:06d}" / "learner.safetensors"
    assert (interrupted / last).read_bytes() == (run_dir / last).read_bytes()
    assert timeless(interrupted) == timeless(run_dir)
    assert (interrupted / "adapters" / "best").readlink() == (run_dir / "adapters" / "best").readlink()
    for path in sorted((run_dir / "rollouts").iterdir()):
        assert (interrupted / "rollouts" / path.name).read_bytes() == path.read_bytes()


def test_two_ranks_make_the_adapter_of_one(run_dir: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() == 1:
        pytest.skip("two ranks take two cards")
    place = meeting_place(2)

    def rank(number: int) -> tuple[int, str]:
        launcher = {"RANK": str(number), "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2", **place}
        return forked.train(tmp_path, *OVERRIDES, "learner.zero_stage=1", environment=launcher)

    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(rank, (0, 1)))
    assert [code for code, _ in ended] == [0, 0], ended
    two = tmp_path / "runs" / "quickstart"
    for path in sorted(run_dir.glob("adapters/v*/adapter_model.safetensors")):
        assert_same_adam_steps(load_file(two / path.relative_to(run_dir)), load_file(path), 1e-3)
    assert [line["reward/mean"] for line in read_metrics(two)[1:]] == [
        line["reward/mean"] for line in read_metrics(run_dir)[1:]
    ]
    # One rank alone writes records: its start and its end.
    began, ended = [json.loads(line) for line in (two / STARTS).read_text(encoding="utf-8").splitlines()]
    assert (began["ranks"], list(ended)) == (2, ["ended"])


def test_full_fine_tuning_differs_in_its_method_alone(run_dir: Path, tmp_path: Path) -> None:
    """The same configuration with one key changed: the same loop, the same metrics, the same minimal sampler gap.

    The learning rate is the adapter's, far too high for a whole model, which diverges. What it learns does not matter
    here.
    """
    code, output = run(tmp_path, *OVERRIDES, "method=full", "train.steps=2")
    assert code == 0, output
    full = tmp_path / "runs" / "quickstart"
    lines, expected = read_metrics(full), read_metrics(run_dir)
    assert [line["step"] for line in lines] == [0, 1, 2]
    # The base model is not kept just to measure the KL to it.
    assert STEP_METRICS - lines[1].keys() == {"policy/kl_base"}
    # Before the first update both runs have the base model; afterwards they differ.
    assert lines[1]["reward/mean"] == expected[1]["reward/mean"]
    assert lines[2]["policy/entropy"] != expected[2]["policy/entropy"]
    assert all(line["sampler/logprob_gap_max"] < 1e-3 for line in lines[1:])
    config, other = (yaml.safe_load((path / "config.yaml").read_text()) for path in (full, run_dir))
    assert {key for key in config if config[key] != other[key]} == {"method", "train"}
    store = AdapterStore(full / "adapters")
    best = store.pointed("best")
    assert best is not None
    # The two newest are kept, and the best one even if it is older.
    newest = int(lines[2]["adapter/version"])
    assert store.versions() == sorted({best, newest - 1, newest})
    AutoModelForCausalLM.from_pretrained(full / "adapters" / "latest")


def test_the_newest_undamaged_checkpoint_is_gone_on_from(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged checkpoint is skipped in favour of an older one; without any intact one, resuming fails."""
    import shutil

    copy = tmp_path / "checkpoints"
    shutil.copytree(run_dir / "checkpoints", copy)
    with (copy / "step000004" / "learner.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    found = Checkpoints(copy, keep=2).newest()
    assert found is not None
    assert found[0].step == 2
    assert "step000004 is damaged" in caplog.text
    shutil.rmtree(copy / "step000002")
    with pytest.raises(AdapterError, match="every checkpoint"):
        Checkpoints(copy, keep=2).newest()


def test_the_plot_of_a_run_without_evaluations_can_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "rew')
    assert plot_run(tmp_path).is_file()


# Refusals and other commands that load no weights.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lora.targets=[q_porj]"], ["q_porj", "q_proj"]),
        (["sampling.max_tokens=300"], ["context of 256", "sampling.max_tokens"]),
        (["eval.suites=[aime]"], ["eval.suites: no suite 'aime'"]),
    ],
)
def test_a_run_that_cannot_work_is_refused_in_one_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    code, output = run(tmp_path, *OVERRIDES, "--dry-run", *arguments)
    assert code == 2
    assert all(word in output for word in words), output
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_written_over_nor_resumed_as_another(whole_run: Path) -> None:
    code, output = run(whole_run, *OVERRIDES)
    assert (code, "holds a run already" in output) == (2, True)
    code, output = run(whole_run, *OVERRIDES, "--resume", "optim.lr=0.5")
    assert code == 2
    assert "optim.lr was 0.001 and is 0.5" in output


def test_a_dry_run_shows_what_would_run_and_writes_nothing(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--dry-run")
    assert code == 0, output
    for words in ("64 prompts × 8 samples = 512 completions", "14,592 trainable", "rate 0.001", "=?", "256 problems"):
        assert words in output
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_option() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "rl_engine.train", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in ("--config", "--resume", "--dry-run", "--overwrite", "KEY.SUB=VALUE"):
        assert option in answer.stdout
