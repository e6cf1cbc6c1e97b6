"""The doctor: passes on a machine that works, and says plainly which check failed on one that does not."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from benchmarks.gpu_bundle import LEFT_OUT
from evals.command import lasting_console
from rl_engine.config import Config, load_config
from rl_engine.doctor import __main__ as command
from rl_engine.doctor.machine import Library, instructions, libraries
from rl_engine.doctor.reward import spread
from rl_engine.doctor.selftest import (
    CHECK_OF,
    FIRST,
    FITS,
    GAP_BEFORE,
    RESUMED,
    SECOND,
    STEPS,
    Check,
    Listener,
    self_test,
    small,
)
from rl_engine.learner.gap import GapLimits
from rl_engine.learner.ranks import Ranks
from rl_engine.train import assemble, loop

ROOT = Path(__file__).parents[2]
ON_DEVICE = {
    "cpu": ("gloo", "plain products over shared_prompt", "float32"),
    "cuda": ("nccl", "sdpa over", "bfloat16", "of the card,"),
}
CHECKS = list(dict.fromkeys([FITS, *CHECK_OF.values(), FIRST, GAP_BEFORE, SECOND, RESUMED]))


# The doctor, on a machine with nothing else than `benchmarks.gpu_bundle` takes there; and what else runs there.
ON_A_BARE_MACHINE = f"""
import importlib.util, runpy
import benchmarks.gpu_contact.__main__, benchmarks.gpu_contact.learner, benchmarks.gpu_contact.step
import rl_engine.report.page, rl_engine.train.__main__, rl_engine.train.dry_run

assert not any(importlib.util.find_spec(name) for name in {sorted(LEFT_OUT)})
runpy.run_module("rl_engine.doctor", run_name="__main__", alter_sys=True)
"""


def doctor(directory: Path, *arguments: str, start: tuple[str, ...] = ("-m", "rl_engine.doctor")) -> tuple[int, str]:
    place = "only_the_bundle" if ON_A_BARE_MACHINE in start else "no_network"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / place))),
        "NETWORK_ATTEMPTS": str(directory / "network-attempts"),
        "TMPDIR": str(directory),
    }
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HF_HUB_OFFLINE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_doctor_that_nobody_could_hear_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(_: Config) -> bool:
        lasting_console().print("every check passed")
        return True

    monkeypatch.setattr(command, "join_and_examine", passes)
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert command.app(["--config", "quickstart"], standalone_mode=False) == 1


@pytest.mark.engine
def test_all_checks_pass_with_what_a_bare_machine_has(tmp_path: Path) -> None:
    """Neither the doctor nor training imports ray, trl, datasets or anything else that is not packed for such a machine
    and not there already."""
    code, output = doctor(tmp_path, "rollout.kv_cache_gib=0.25", start=("-c", ON_A_BARE_MACHINE))
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith("ok ")]
    assert len(lines) == len(CHECKS) == 11
    for check in CHECKS:
        assert any(line.startswith(f"ok     {check} ") for line in lines), (check, output)
    for words in (
        "processors",
        "torch 2",
        *ON_DEVICE["cuda" if torch.cuda.is_available() else "cpu"],
        "ZeRO stage 0",
        "all checks passed",
    ):
        assert words in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("rl_engine-doctor-*"))
    assert not (tmp_path / "network-attempts").exists()


def test_every_phase_of_a_run_is_part_of_a_check() -> None:
    """Some phases, such as compiling, do not occur on a CPU."""
    named = {
        phase
        for module in (assemble, loop)
        for phase in re.findall(r'console\.phase\(f?"([^"]+)"', inspect.getsource(module))
    }
    assert "compiling the learner's layers" in named
    for phase in named:
        if not phase.endswith("evaluating {suite.name}"):
            steps = range(1, STEPS + 1) if "{" in phase else (0,)
            assert {phase.replace("{run.step}", str(step)) for step in steps} <= CHECK_OF.keys()


def test_what_cannot_be_configured_is_reported_before_loading(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ((), 40 + 72),
        # A suite's prompts may be shorter than the longest: this run has room in 256, where 40 + 226 has none.
        (("eval.max_tokens=226", "eval.suites=[held_out]"), 40 + 72),
    ],
)
def test_the_self_test_samples_in_the_context_of_the_run(
    settings: tuple[str, ...], tokens: int, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test thus fails if the run's sampler has no room, and what vLLM compiles for it on a card serves the run
    too."""
    contexts: list[int] = []
    reports: list[Check] = []
    prepare = assemble.prepare_run

    def prepared(*arguments: Any, **others: Any) -> Any:
        contexts.append(prepare(*arguments, **others).context)
        raise ValueError("seen enough")

    monkeypatch.setattr(assemble, "prepare_run", prepared)
    config = load_config("quickstart.yaml", ("model.dtype=float32", *settings))
    assert self_test(config, tmp_path, ranks, reports.append) is None
    assert contexts == [tokens]
    assert reports[-1].figure == "ValueError: seen enough"


def values_of(schema: Any, definitions: Any) -> list[Any]:
    """Different values of every type that a field takes; not all of them are allowed."""
    if "$ref" in schema:
        return values_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return [value for one in schema["anyOf"] for value in values_of(one, definitions)]
    if "enum" in schema or "const" in schema:
        return list(schema.get("enum", [schema.get("const")]))
    of_type: dict[str, list[Any]] = {
        "boolean": [True, False],
        "integer": [0, 1, 2, 4, 16, 100, 1000],
        "number": [0, 0.25, 0.5, 1.0, 2.0, 100.0],
        "string": ["held_out", "gsm8k", "cosine", "mlp", "cpu", "package.module:name"],
        "array": [["held_out"], ["held_out", "gsm8k"], [3], ["<end>"]],
        "object": [{"q_proj": 2}, {"x": 1}],
    }
    return of_type.get(schema.get("type"), [])


def changes_of(schema: Any, definitions: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value) for every field of a configuration and each of its values."""
    for name, one in schema["properties"].items():
        section = definitions.get(one.get("$ref", "").rpartition("/")[2], {})
        if "properties" in section:
            yield from (((name, *keys), value) for keys, value in changes_of(section, definitions))
        else:
            yield from (((name,), value) for value in values_of(one, definitions))


AHEAD = ("rollout.placement=ray", "rollout.max_staleness=2", "loss.name=cispo", "sampling.max_tokens=4096")
WITH_SUITES = ("eval.suites=[held_out]", "eval.best=held_out", "eval.temperature=0.5", "eval.n=4")
FEW = ("train.problems_per_step=2", "train.max_problems_per_step=4", "sampling.max_tokens=8")


@pytest.mark.parametrize("base", [(), AHEAD, WITH_SUITES, FEW, ("method=full",)], ids=str)
def test_the_self_test_takes_every_setting_of_a_run(base: tuple[str, ...]) -> None:
    """Every value of every field that makes a valid configuration also makes a valid small one."""
    schema = Config.model_json_schema()
    given = load_config("quickstart.yaml", base).model_dump(mode="json", exclude_unset=True)
    tried = set()
    for keys, value in changes_of(schema, schema["$defs"]):
        settings = deepcopy(given)
        place = settings
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        try:
            config = Config.model_validate(settings)
        except ValidationError:
            continue
        small(config, Path("here"))
        tried.add(".".join(keys))
    assert {"loss.name", "rewards.function", "train.steps", "lora.rank", "log.wandb"} <= tried
    assert len(tried) > 60
    assert ("rollout.leg_tokens" in tried) == (base == AHEAD)


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


@pytest.mark.parametrize(
    ("kl", "told"), [(0.002, "KL 0.002 (limit 0.01)"), (0.0108, "KL 0.011 (limit 0.01, above it by chance)")]
)
def test_a_gap_that_passes_above_its_limit_is_reported_as_such(kl: float, told: str) -> None:
    found: list[Check] = []
    listener = Listener(quiet=True, steps=STEPS, report=found.append, limits=GapLimits(kl=0.01, logprob=2.0))
    listener.row({"step": STEPS, "sampler/logprob_gap_max": 0.945, "sampler/kl": kl}, [])
    assert [check.figure for check in found] == [f"0.94 nats (limit 2), {told}"]
