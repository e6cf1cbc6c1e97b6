"""The first contact with a card, rehearsed without one: what is asked, in what order, and what is said of failures."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import typer
from transformers import AutoTokenizer

from benchmarks.gpu_contact import learner, machine, running, step
from benchmarks.gpu_contact import stages as stages_module
from benchmarks.gpu_contact.__main__ import chosen, contact, main
from benchmarks.gpu_contact.figures import FILE, noted
from benchmarks.gpu_contact.page import adapter_ratio, page
from benchmarks.gpu_contact.running import CUT, FAILED, OVERLONG, PASSED, ROOT, SKIPPED, Outcome
from benchmarks.gpu_contact.runs import resumed, steps_of, trained
from benchmarks.gpu_contact.sizes import ADAPTER, IDLE, SIZES
from benchmarks.gpu_contact.stages import Stage, stages
from benchmarks.gpu_contact.weights import NEVER, write_checkpoint, write_shape
from rl_engine.config import load_config
from rl_engine.learner.batching import collate
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.policy import base_model
from rl_engine.policy.compiled_layers import NotCompiledWarning
from tests.helpers import forked

CPU = SIZES["cpu"]
NOTE = "from benchmarks.gpu_contact.figures import note; "
CACHES = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")


def scripted(name: str, code: str, limit_s: float = 60, **others: Any) -> Stage:
    expected_s = limit_s - stages_module.SPARE_S
    return Stage(name=name, asks="?", command=(sys.executable, "-c", code), expected_s=expected_s, **others)


def test_a_stage_that_fails_or_lasts_never_stops_the_next(tmp_path: Path) -> None:
    left = tmp_path / "left"
    # A process of the overlong stage's own, which would write its file a second later.
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
    # What an overlong stage had measured is kept.
    assert [row.get("arm") for line in lines for row in line["figures"]] == ["one", "two", None]
    text = (tmp_path / "out/contact.md").read_text()
    assert "## Stages: 2 of 5 passed" in text
    assert "so far\nno kernel for this card" in text
    assert "it needs bad, which was failed" in text
    assert (tmp_path / "out/bad.log").read_text() == "so far\nno kernel for this card\n"
    time.sleep(max(0.0, start + 4 - time.monotonic()))
    assert not left.exists()


def test_what_the_deadline_cuts_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LEAST_S", 0.2)
    asked = [scripted("begun", "import time; time.sleep(60)"), scripted("not begun", "")]
    outcomes = contact(asked, time.monotonic() + 1, tmp_path, "cpu")
    assert [one.outcome for one in outcomes] == [CUT, CUT]
    assert outcomes[0].reason.startswith("ended after")
    assert "it was not begun" in (tmp_path / "contact.md").read_text()


# The command with one stage that lasts, in a process that is spared torch, which only says whether there is a card.
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
# The same, asked to end at the moment when the stage's process is there and nobody has been told so.
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
    ended = subprocess.run([sys.executable, "-c", program, "--out", tmp_path], cwd=ROOT, timeout=60)
    assert ended.returncode == code
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("name", SIZES)
def test_every_stage_is_told_settings_that_exist(name: str, tmp_path: Path) -> None:
    """`learner.layout: packed` and the like may be refused when the arm runs, and are then said to have failed; a key
    that is not there is a mistake of ours."""
    asked = stages(SIZES[name], tmp_path, tmp_path / "SmolLM2")
    assert len({stage.name for stage in asked}) == len(asked)
    assert {stage.after for stage in asked} <= {stage.name for stage in asked} | {None}
    for stage in asked:
        settings = [word for word in stage.command if "=" in word]
        config = next((word for word in stage.command if word.endswith(".yaml")), "quickstart.yaml")
        load_config(config, settings)


def test_all_before_the_doctor_fits_the_default_deadline(tmp_path: Path) -> None:
    """Ten minutes on a card, a start of the device included; what one takes longer than planned the last one lacks. The
    doctor comes after that: runs before it have been resumed, and have slept."""
    asked = stages(SIZES["card"], tmp_path, None)
    default = inspect.signature(main).parameters["deadline"].default
    assert asked[-1].name == "doctor"
    assert sum(stage.expected_s for stage in asked[:-1]) <= default == 590
    (resume,) = (stage for stage in asked if stage.name == "resume")
    assert {"--resume", "rollout.sleep=true"} <= set(resume.command)
    # A start whose caches hold nothing is no reason to end a stage.
    assert all(stage.limit_s == stage.expected_s + stages_module.SPARE_S for stage in asked)
    assert [stage.limit_s for stage in stages(CPU, tmp_path, None)] == [CPU.patience * one.limit_s for one in asked]


def test_the_page_names_the_stages_with_what_is_planned_for_them(tmp_path: Path) -> None:
    """docs/gpu.md: every stage with its seconds, in their order, their sum, and a check of every line of its table that
    is a stage, a test or a command that exists."""
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
    """vLLM's cache is the home directory's unless the caller says otherwise, and no stage says so for itself; the
    libraries' Python is compiled once whatever the caller has set."""
    asked = [
        scripted("one", f"{NOTE}import os; note('seen', **{{n: os.environ.get(n) for n in {CACHES}}})"),
    ]
    (outcome,) = running.run_all(asked, time.monotonic() + 60, tmp_path)
    (row,) = outcome.figures
    assert {name: row[name] for name in CACHES} == {name: os.environ.get(name) for name in CACHES} | {
        "PYTHONDONTWRITEBYTECODE": ""
    }


@pytest.mark.parametrize("arm", learner.ARMS)
def test_every_arm_is_told_settings_that_exist(arm: str) -> None:
    load_config("quickstart.yaml", [*learner.ARMS[arm].settings])
    assert learner.ARMS[arm].mask in learner.MASKS


def test_the_rows_of_a_group_have_one_prompt() -> None:
    own, group = (learner.samples_of(CPU, 256, group=group) for group in (False, True))
    assert [sample.num_tokens for sample in group] == [sample.num_tokens for sample in own]
    assert {sample.prompt_ids for sample in group} == {group[0].prompt_ids}
    assert len(learner.samples_of(SIZES["card"], 256, group=True)[0].prompt_ids) == 256
    assert learner.ARMS["rank 1, one long prompt"].shares_learner(learner.ARMS["rank 1"])
    assert not learner.ARMS["rank 1, one long prompt, shared"].shares_learner(learner.ARMS["rank 1"])


def test_single_stages_come_with_what_they_need_before(tmp_path: Path) -> None:
    """Single stages can be asked for with what they come after."""
    every = stages(CPU, tmp_path, None)
    assert chosen(every, []) == every
    assert [stage.name for stage in chosen(every, ["doctor", "resume"])] == ["quickstart", "resume", "doctor"]
    with pytest.raises(typer.BadParameter, match="the stages are machine, quickstart"):
        chosen(every, ["nothing"])


def test_an_arm_that_the_memory_does_not_hold_leaves_the_others(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    measure, build, built = learner.measure, learner.build, []

    def short(arm: learner.Arm, *others: Any) -> dict[str, Any]:
        if "lora.rank=32" in arm.settings:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it")
        return measure(arm, *others)

    def counted(arm: learner.Arm, *others: Any) -> Any:
        built.append(arm)
        return build(arm, *others)

    monkeypatch.setattr(learner, "measure", short)
    monkeypatch.setattr(learner, "build", counted)
    arms = {"a": learner.Arm(settings=("lora.rank=32",)), "b": learner.Arm(times=2), "c": learner.Arm()}
    monkeypatch.setattr(learner, "ARMS", arms | {"d": learner.Arm(compiled=False), "e": learner.Arm(shape=1)})
    learner.main("cpu")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(row["kind"], row["arm"]) for row in rows] == [("left out", "a"), *(("learner", arm) for arm in "bcde")]
    assert [row["tokens"] for row in rows[1:]] == [2 * (32 + 24), *[32 + 24] * 3]
    assert [row["model"] for row in rows[1:]] == ["tiny"] * 3 + ["tiny-untied"]
    # Two that differ in their rows alone share a learner.
    assert [arm for arm in built if arm == arms["c"]] == []
    assert len(built) == 4
    text = page([outcome("learner", *rows)], "cpu")
    assert "- a: left out, CUDA out of memory. Tried to allocate 2 GiB." in text


def test_random_weights_never_end_and_every_token_has_a_text(tmp_path: Path) -> None:
    write_shape(tmp_path, CPU.shapes["tiny"], "float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    vocabulary = CPU.shapes["tiny"]["vocab_size"]
    assert tokenizer.convert_tokens_to_ids(NEVER) == tokenizer.eos_token_id == vocabulary == len(tokenizer) - 1
    texts = [tokenizer.decode([number]) for number in range(3, vocabulary)]
    assert len(set(texts)) == vocabulary - 3
    assert "" not in texts
    # transformers reads the tokenizer of this family in its own way: the line's end of the template gets lost.
    assert tokenizer.decode(tokenizer.encode("12+3-4=?")) == "12+3-4=?"


@pytest.fixture
def drawn(tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the tiny shape, without weights: the learner draws them, until the test is over."""
    monkeypatch.setattr(base_model, "load_weights", base_model.load_weights)
    write_shape(tmp_path / "tiny", CPU.shapes["tiny"], "float32")
    return tmp_path / "tiny"


def test_right_padded_rows_need_no_mask(drawn: Path) -> None:
    """Without a mask, right-padded rows are computed as with one."""
    started = learner.start_learner(drawn, CPU, ["learner.layout=padded"])
    batch = collate(learner.samples_of(CPU, 256), 0, "padded")
    with torch.no_grad():
        logprobs = [started.deepspeed_engine(learner.masked(batch, mask))[0] for mask in learner.MASKS]
    for other in logprobs[1:]:
        torch.testing.assert_close(logprobs[0], other, rtol=0, atol=1e-5)
    assert learner.masked(batch, "none").attention_mask_BT is None
    assert learner.masked(batch, "given").attention_mask_BT.sum() == sum(
        s.num_tokens for s in learner.samples_of(CPU, 256)
    )


def test_an_arm_of_the_learner_is_measured(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn.parent / "figures.jsonl"
    monkeypatch.setenv(FILE, str(figures))
    monkeypatch.setattr(learner, "ARMS", {"rank 4": learner.Arm(settings=("lora.rank=4", "learner.layout=padded"))})
    learner.main("cpu")
    (row,) = noted(figures)
    assert (row["model"], row["arm"], row["layout"]) == ("tiny", "rank 4", "padded")
    assert row["tokens"] == 32 + 24
    assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"])
    assert row["peak_gib"] is None
    # By hand, multiply-adds of one token in the linear layers of both layers, and in the output embedding.
    width, wide = 64, 128
    linear = 2 * (2 * width * width + 2 * width * width // 2 + 3 * width * wide)
    predicted = row["tokens"] - 2 * learner.PROMPT
    frozen = 2 * 2 * (row["tokens"] * linear + predicted * width * 256)
    # The rank and attention come to it.
    assert frozen < row["tflops"] * 1e12 * row["seconds"] < 1.3 * frozen


def test_an_arm_that_is_not_what_it_is_called_is_no_figure(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Layers that stayed as they were are not compiled ones, and what leaves no gradient is no pass of a step."""

    def stay(*_: Any) -> None:
        warnings.warn(
            "torch.compile does not work here: no; so the learner's passes take longer",
            NotCompiledWarning,
            stacklevel=2,
        )

    monkeypatch.setattr(Learner, "is_worth_compiling", True)
    monkeypatch.setattr(Learner, "compile_layers", stay)
    monkeypatch.setattr(learner, "ARMS", {"a": learner.Arm(), "b": learner.Arm(compiled=False)})
    learner.main("cpu")
    monkeypatch.setattr(
        "benchmarks.learner.objective", lambda _, batch, logprob, *__: SimpleNamespace(loss=0 * logprob.sum())
    )
    learner.main("cpu")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row.get("why", row["kind"]) for row in rows] == [
        "torch.compile does not work here: no; so the learner's passes take longer",
        "learner",
        "torch.compile does not work here: no; so the learner's passes take longer",
        "the passes leave a gradient of 0",
    ]


def test_a_steps_engine_is_asked_with_its_adapter_and_without(tmp_path: Path) -> None:
    """The stage's command, in a process that has its libraries loaded."""
    (stage,) = [one for one in stages(CPU, tmp_path, None) if one.name == "step"]
    settings = [word for word in stage.command if "=" in word]
    checkpoint = tmp_path / "tiny"
    written = write_checkpoint(checkpoint, CPU, "tiny")
    assert written["parameters"] * 4 == pytest.approx(written["gib"] * 2**30, rel=0.01)
    figures = tmp_path / "figures.jsonl"
    code, output = forked.train(
        ROOT,
        f"model.name={checkpoint}",
        *settings,
        environment={FILE: str(figures), "PYTHONPATH": str(ROOT)},
        prepare=partial(step.decode_at_the_end, CPU),
    )
    assert code == 0, output
    # Noted as it is measured: a stage that is cut off keeps its rounds.
    idle, adapter, *again, looked_at, _ = (rows := noted(figures))[: 2 * step.ROUNDS + 2]
    host = rows[2 * step.ROUNDS + 1 :]
    assert [row["arm"] for row in again] == [IDLE, ADAPTER] * (step.ROUNDS - 1)
    assert [(row["arm"], row["sequences"], row["tokens"]) for row in (idle, adapter)] == [
        (IDLE, 4, 16),
        (ADAPTER, 4, 16),
    ]
    assert all(row["tokens_per_s"] > 0 for row in (idle, adapter))
    assert (looked_at["kind"], looked_at["tokens"], looked_at["kernel_s"]) == ("decoding step", 16, None)
    assert [row["kind"] for row in host] == ["host"] * step.FUNCTIONS
    assert sum(row["seconds"] for row in host) < host[0]["whole_s"]
    text = page([outcome("step", idle, adapter, looked_at | {"seconds": 0.16, "kernel_s": 0.04}, *host)], "card")
    assert "A step of decoding with the adapter: 10.0 ms, the card at work 2.5 of them." in text
    assert f"| `{host[0]['function']}`, {host[0]['where']} | {host[0]['calls']} |" in text
    (first, later) = stage.read()
    assert first["kind"] == "step"
    assert later["sampling_tokens_per_s"] > 0
    # What the run asks for is what the engine is built for.
    assert load_config("quickstart.yaml", settings).rollout.max_num_seqs == 4


def test_rounds_take_turns_and_count_whole_completions_alone(tmp_path: Path) -> None:
    write_shape(tmp_path, CPU.shapes["tiny"], "float32")
    asked: list[tuple[Any, int]] = []

    class Engine:
        length = CPU.tokens

        def generate(self, prompts: list[Any], sampling: Any, adapter: Any, seeds: list[str]) -> list[Any]:
            asked.append((adapter, sampling.max_tokens))
            completion = SimpleNamespace(token_ids=range(self.length))
            return [SimpleNamespace(completions=[completion] * sampling.n) for _ in prompts]

    sampler = SimpleNamespace(engine=Engine())
    config = SimpleNamespace(model=SimpleNamespace(name=str(tmp_path)))
    run = SimpleNamespace(sampler=sampler, config=config, adapter="newest")
    step.decode(run, CPU)
    # Two short rounds in the end are looked into.
    assert [adapter for adapter, _ in asked] == [None, None, "newest", None, "newest", "newest", "newest"]
    sampler.engine.length -= 1
    with pytest.raises(SystemExit, match="completions ended before their full length"):
        step.decode(run, CPU)


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
    # A hundred tokens a step, sampled in half of its time.
    assert first["sampling_tokens_per_s"] == pytest.approx(25)
    assert trained(tmp_path / "run", "run")[0]["held_out_after"] == 0.75
    whole, more = resumed(tmp_path / "run", "run", 3, 1)
    assert whole == {"kind": "resumed", "steps": 3, "whole": True}
    assert (more["step_s"], more["which"]) == (4, "resumed, the sampler asleep while the learner works")
    # One that ended before its first step has none.
    assert [row["kind"] for row in resumed(tmp_path / "run", "run", 4, 1)] == ["resumed"]
    assert not resumed(tmp_path / "run", "run", 4, 1)[0]["whole"]
    assert steps_of(tmp_path / "nothing", "run") == []


def outcome(name: str, *figures: dict[str, Any]) -> Outcome:
    return Outcome(name=name, asks="?", outcome=PASSED, figures=figures)


def sampling(arm: str, speed: float) -> dict[str, Any]:
    return {"kind": "sampling", "arm": arm, "sequences": 128, "tokens": 1024, "tokens_per_s": speed}


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
