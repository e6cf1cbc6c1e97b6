"""The doctor: passes on a machine that works, and says plainly which check failed on one that does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl_engine.config import load_config
from rl_engine.doctor.machine import Library, instructions, libraries
from rl_engine.doctor.reward import spread
from rl_engine.doctor.selftest import CHECK_OF, FIRST, FITS, GAP_BEFORE, RESUMED, SECOND, small

ROOT = Path(__file__).parents[2]
CHECKS = list(dict.fromkeys([FITS, *CHECK_OF.values(), FIRST, GAP_BEFORE, SECOND, RESUMED]))


def doctor(directory: Path, *arguments: str) -> tuple[int, str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "no_network"))),
        "NETWORK_ATTEMPTS": str(directory / "network-attempts"),
        "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(directory),
    }
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HF_HUB_OFFLINE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "rl_engine.doctor", *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


@pytest.mark.engine
def test_all_checks_pass_here(tmp_path: Path) -> None:
    code, output = doctor(tmp_path, "rollout.kv_cache_gib=0.25")
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith("ok ")]
    assert len(lines) == len(CHECKS) == 11
    for check in CHECKS:
        assert any(line.startswith(f"ok     {check} ") for line in lines), (check, output)
    for words in (
        "processors",
        "torch 2",
        "gloo",
        "plain products over shared_prompt",
        "float32",
        "ZeRO stage 0",
        "all checks passed",
    ):
        assert words in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("rl_engine-doctor-*"))
    assert not (tmp_path / "network-attempts").exists()


def test_what_cannot_be_configured_is_said_before_loading(tmp_path: Path) -> None:
    code, output = doctor(tmp_path, "lora.rnak=1")
    assert (code, "did you mean lora.rank?" in output) == (2, True)


def test_the_self_test_is_the_same_run_made_small() -> None:
    config = load_config("deepmath.yaml", ["optim.lr=0.5", "output_dir=elsewhere"])
    made = small(config, Path("here"))
    assert (made.output_dir, made.train.steps, made.train.problems_per_step, made.sampling.n) == ("here", 2, 8, 4)
    assert (made.sampling.max_tokens, made.eval.suites) == (48, ())
    same = {"model", "prompt", "lora", "optim", "loss", "rollout", "seed", "method"}
    assert made.model_dump(include=same) == config.model_dump(include=same)
    assert made.rewards.function == "rl_engine.doctor.reward:spread"
    own = load_config("quickstart.yaml", ["rewards.function=trl:think_format_reward"])
    assert small(own, Path("here")).rewards == own.rewards


def test_the_reward_of_the_self_test_tells_texts_apart() -> None:
    values = {spread(completion=text, reference="1", problem="") for text in ("a", "b", "ab", "")}
    assert len(values) == 4
    assert all(0 <= value < 1 for value in values)


def test_instructions_are_read_on_both_kinds_of_processor() -> None:
    assert instructions("model name : x\nflags\t\t: fpu avx2 avx512f amx_bf16\n") == ["avx2", "avx512f", "amx_bf16"]
    assert instructions("Features\t: fp asimd bf16\n") == ["asimd", "bf16"]
    assert instructions("") == []


def test_versions_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "cpu.txt"
    lock.write_text("torch==0.0.1\npsutil==0.0.2\n")
    torch, absent = libraries(lock, ("torch", "no-such-package"))
    assert not torch.as_locked
    assert torch.describe().endswith("(lock: 0.0.1)")
    assert absent == Library("no-such-package", None, None)
    assert not absent.as_locked
    (unlocked,) = libraries(tmp_path / "absent.txt", ("torch",))
    assert unlocked.as_locked
    same_everywhere = ("vllm", "deepspeed", "transformers", "peft", "trl")
    assert all(library.as_locked for library in libraries(ROOT / "requirements" / "cpu.txt", same_everywhere))
