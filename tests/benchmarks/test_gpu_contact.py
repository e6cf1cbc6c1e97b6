"""The first contact with a GPU: stages as processes, their time limits, and how their figures are read."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer

from benchmarks.gpu_contact import machine, running
from benchmarks.gpu_contact import stages as stages_module
from benchmarks.gpu_contact.__main__ import chosen, contact, main
from benchmarks.gpu_contact.page import adapter_ratio, page
from benchmarks.gpu_contact.running import CUT, FAILED, OVERLONG, PASSED, ROOT, SKIPPED
from benchmarks.gpu_contact.runs import resumed, steps_of, trained
from benchmarks.gpu_contact.sizes import ADAPTER, IDLE, SIZES
from benchmarks.gpu_contact.stages import Stage, stages
from rl_engine.config import load_config
from tests.helpers.contact_figures import CPU, outcome, sampling

NOTE = "from benchmarks.gpu_contact.figures import note; "

CACHES = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")


def scripted(name: str, code: str, limit_s: float = 60, **others: Any) -> Stage:
    expected_s = limit_s - stages_module.SPARE_S
    return Stage(name=name, asks="?", command=(sys.executable, "-c", code), expected_s=expected_s, **others)


def test_a_stage_that_fails_or_lasts_never_stops_the_next(tmp_path: Path) -> None:
    left = tmp_path / "left"
    # A child process of the overlong stage, which would write its file a second later.
    child = f"import time; time.sleep(1.5); open({str(left)!r}, 'w')"
    overlong = (
        f"import subprocess, sys, time; {NOTE}note('sampling', arm='one', sequences=1, tokens=1, tokens_per_s=2.0); "
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    asked = [
        scripted("bad", "print('so far'); raise SystemExit('no kernel for this card')"),
        scripted("long", overlong, limit_s=1),
        scripted("needs bad", "print('never')", after="bad"),
        scripted("good", NOTE + "note('sampling', arm='two', sequences=1, tokens=1, tokens_per_s=None)"),
        scripted("read", "print()", read=lambda: [{"kind": "resumed", "steps": 2, "whole": True}]),
    ]
    start = time.monotonic()
    outcomes = contact(asked, start + 60, tmp_path / "out", "cpu")
    assert [one.outcome for one in outcomes] == [FAILED, OVERLONG, SKIPPED, PASSED, PASSED]
    assert time.monotonic() - start < 30
    lines = [json.loads(line) for line in (tmp_path / "out/contact.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [stage.name for stage in asked]
    assert lines[0]["exit"] == 1
    # The figures that an overlong stage had already noted are kept.
    assert [row.get("arm") for line in lines for row in line["figures"]] == ["one", "two", None]
    text = (tmp_path / "out/contact.md").read_text()
    assert "## Stages: 2 of 5 passed" in text
    assert "so far\nno kernel for this card" in text
    assert "it needs bad, which was failed" in text
    assert (tmp_path / "out/bad.log").read_text() == "so far\nno kernel for this card\n"
    time.sleep(max(0.0, start + 4 - time.monotonic()))
    assert not left.exists()


def test_what_the_deadline_cuts_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LEAST_S", 0.2)
    asked = [scripted("begun", "import time; time.sleep(60)"), scripted("not begun", "")]
    outcomes = contact(asked, time.monotonic() + 1, tmp_path, "cpu")
    assert [one.outcome for one in outcomes] == [CUT, CUT]
    assert outcomes[0].reason.startswith("ended after")
    assert "it was not begun" in (tmp_path / "contact.md").read_text()


# The command with one long stage, in a process where torch is a stub that only says whether there is a GPU.
ENDLESS = """
import sys, types
sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
import typer
from benchmarks.gpu_contact import __main__ as command
from benchmarks.gpu_contact.stages import Stage
code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
stage = Stage(name="long", asks="?", command=(sys.executable, "-c", code), expected_s=500)
command.stages = lambda *_: [stage]
typer.run(command.main)
"""

# The same, asked to stop at the moment when the stage's process exists but nothing has recorded it yet.
STARTING = """
import os, pathlib, signal, subprocess, sys
fork = subprocess._fork_exec
def forked(*arguments):
    pid = fork(*arguments)
    pathlib.Path(sys.argv[-1], "pid").write_text(str(pid))
    os.kill(os.getpid(), signal.{name})
    return pid
subprocess._fork_exec = forked
"""


def test_who_ends_it_ends_the_stage_at_work(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, "--out", tmp_path], cwd=ROOT)
    log, end = tmp_path / "long.log", time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")) and time.monotonic() < end:
        time.sleep(0.1)
    child = psutil.Process(int(log.read_text()))
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not child.is_running()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 128 + signal.SIGTERM), ("SIGINT", 130)])
def test_a_stage_that_is_being_started_is_ended_too(name: str, code: int, tmp_path: Path) -> None:
    program = STARTING.format(name=name) + ENDLESS
    ended = subprocess.run([sys.executable, "-c", program, "--out", tmp_path], cwd=ROOT)
    assert ended.returncode == code
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("name", SIZES)
def test_every_stage_gets_settings_that_exist(name: str, tmp_path: Path) -> None:
    """`learner.layout: packed` and similar values may be refused when the arm runs, and are then reported as failed. A
    key that does not exist is a mistake in the stages themselves."""
    asked = stages(SIZES[name], tmp_path, tmp_path / "SmolLM2")
    assert len({stage.name for stage in asked}) == len(asked)
    assert {stage.after for stage in asked} <= {stage.name for stage in asked} | {None}
    for stage in asked:
        settings = [word for word in stage.command if "=" in word]
        config = next((word for word in stage.command if word.endswith(".yaml")), "quickstart.yaml")
        load_config(config, settings)


def test_all_before_the_doctor_fits_the_default_deadline(tmp_path: Path) -> None:
    """The stages before the doctor fit into ten minutes on a GPU, including the start of the device; a stage that
    overruns takes time from the last one. The doctor may lie beyond the deadline, since earlier stages already cover
    resuming and sleeping."""
    asked = stages(SIZES["card"], tmp_path, None)
    default = inspect.signature(main).parameters["deadline"].default
    assert asked[-1].name == "doctor"
    assert sum(stage.expected_s for stage in asked[:-1]) <= default == 590
    (resume,) = (stage for stage in asked if stage.name == "resume")
    assert {"--resume", "rollout.sleep=true"} <= set(resume.command)
    # A cold start with empty caches must not end a stage.
    assert all(stage.limit_s == stage.expected_s + stages_module.SPARE_S for stage in asked)
    assert [stage.limit_s for stage in stages(CPU, tmp_path, None)] == [CPU.patience * one.limit_s for one in asked]


def test_the_page_names_the_stages_with_what_is_planned_for_them(tmp_path: Path) -> None:
    """docs/gpu.md lists every stage with its seconds, in order, and their sum. Each line of its table of checks names a
    stage, test or command that exists."""
    text = (ROOT / "docs/gpu.md").read_text()
    asked = stages(SIZES["card"], tmp_path, tmp_path)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    told = {name: seconds for name, _, seconds in (row for row in rows if len(row) == 3)}
    assert told == {f"`{stage.name}`": f"{stage.expected_s:.0f}" for stage in asked}
    planned = sum(stage.expected_s for stage in asked if stage.name not in ("doctor", "real-model"))
    assert f"a plan: {planned:.0f} without `doctor` and `real-model`" in text
    _, _, table = text.partition("| checked on a card by |\n")
    _, *lines = [line.strip("|").split("|") for line in table.split("\n\n")[0].splitlines()]
    assert len(lines) > 20
    names = {stage.name for stage in asked}
    for line in lines:
        check = line[-1].strip()
        assert check, line[0]
        # Single words are stages; the rest are commands, files and settings.
        assert set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", check)) <= names, line[0]
        for path in re.findall(r"`(tests/[^`]+)`", check):
            assert (ROOT / path).is_file(), path


def test_every_stage_finds_what_another_compiled(tmp_path: Path) -> None:
    """vLLM's cache is in the home directory unless the caller says otherwise, and no stage overrides that. Python
    bytecode of the libraries is cached whatever the caller has set."""
    asked = [
        scripted("one", f"{NOTE}import os; note('seen', **{{n: os.environ.get(n) for n in {CACHES}}})"),
    ]
    (outcome,) = running.run_all(asked, time.monotonic() + 60, tmp_path)
    (row,) = outcome.figures
    assert {name: row[name] for name in CACHES} == {name: os.environ.get(name) for name in CACHES} | {
        "PYTHONDONTWRITEBYTECODE": ""
    }


def test_single_stages_come_with_what_they_need_before(tmp_path: Path) -> None:
    every = stages(CPU, tmp_path, None)
    assert chosen(every, []) == every
    assert [stage.name for stage in chosen(every, ["doctor", "resume"])] == ["quickstart", "resume", "doctor"]
    with pytest.raises(typer.BadParameter, match="the stages are machine, quickstart"):
        chosen(every, ["nothing"])


def test_the_machine_is_described_whatever_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(machine, "MODULES", ("json", "no_such_module"))
    monkeypatch.setattr(machine, "look_at", {"Qwen2ForCausalLM": "looked at"}.__getitem__)
    machine.main("cpu")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["ok"] for row in rows if row["kind"] == "import"] == [True, False, True, False]
    ceilings = {name: value for row in rows if row["kind"] == "ceiling" for name, value in row.items()}
    assert ceilings["product_tflops"] > 0
    assert ceilings["copy_gb_s"] > 0


def write_metrics(run: Path, lines: list[dict[str, float]]) -> None:
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "cut')


def test_a_run_is_read_by_its_steps(tmp_path: Path) -> None:
    def step(number: int, seconds: float) -> dict[str, float]:
        times = {"time/rollout_s": seconds / 2, "time/learn_s": 1.0, "time/sync_s": 0.5, "time/step_s": seconds}
        return {"step": number, "throughput/tokens_per_s": 100 / seconds, "memory/learn_gib": seconds, **times}

    lines = [{"step": 0, "eval/held_out/avg": 0.25}, step(1, 8), step(2, 2), step(3, 4)]
    write_metrics(tmp_path / "run", [*lines[:3], {**lines[3], "eval/held_out/avg": 0.75}])
    first, later = steps_of(tmp_path / "run", "run")
    assert (first["step_s"], later["step_s"], later["peak_gib"]) == (8, 3, 4)
    # A hundred tokens a step, sampled in half of the step's time.
    assert first["sampling_tokens_per_s"] == pytest.approx(25)
    assert trained(tmp_path / "run", "run")[0]["held_out_after"] == 0.75
    whole, more = resumed(tmp_path / "run", "run", 3, 1)
    assert whole == {"kind": "resumed", "steps": 3, "whole": True}
    assert (more["step_s"], more["which"]) == (4, "resumed, the sampler asleep while the learner works")
    # A run that ended before its first step has no such figures.
    assert [row["kind"] for row in resumed(tmp_path / "run", "run", 4, 1)] == ["resumed"]
    assert not resumed(tmp_path / "run", "run", 4, 1)[0]["whole"]
    assert steps_of(tmp_path / "nothing", "run") == []


def test_a_card_is_held_against_the_goals_and_a_cpu_is_not() -> None:
    arm = {"kind": "learner", "model": "m", "arm": "a", "layout": "padded", "tokens": 8192, "seconds": 0.1}
    arm |= {"kernels": 9000, "kernel_s": 0.08}
    measured = [
        outcome("machine", {"kind": "machine", "card": "Some Card", "torch": "2.11"}),
        outcome("step", *map(sampling, (IDLE, ADAPTER) * 2, (29_000, 24_500, 31_000, 23_500))),
        outcome("learner", {**arm, "tokens_per_s": 1.0, "tflops": 300.0, "mfu": 0.41, "peak_gib": 20.0}),
    ]
    assert adapter_ratio(measured) == pytest.approx(0.8)
    text = page(measured, "card")
    assert text.startswith("# First contact: Some Card\n\ntorch 2.11\n")
    goals = [line for line in text.split("## Goals")[1].splitlines() if line.startswith("| ")][1:]
    assert [line.split("|")[4].strip() for line in goals] == ["met", "**not met**", "met"]
    on_cpu = page(measured, "cpu")
    assert "## Goals" not in on_cpu
    assert "say that the stages run, and nothing of speed" in on_cpu
    assert adapter_ratio([measured[0], outcome("step", sampling(IDLE, 30_000))]) is None
    assert "not measured" in page(measured[:1], "card")
