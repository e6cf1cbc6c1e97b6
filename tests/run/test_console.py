"""What the user sees in the console."""

from __future__ import annotations

import io
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from evals.__main__ import app as evals
from rl_engine.config import load_config
from rl_engine.run.board import Board, CellConsole
from rl_engine.run.console import COLUMNS, RunConsole, ShownAnswer
from rl_engine.train.next_steps import next_steps
from rollout.models import EMBEDDED_DIR

ROOT = Path(__file__).parents[2]


def test_the_summary_compares_the_first_and_the_last_evaluation() -> None:
    out = io.StringIO()
    console = RunConsole(quiet=False, steps=2, console=Console(file=out, width=200))
    scores = {"eval/s/avg": 0.25, "eval/s/low": 0.2, "eval/s/high": 0.3, "eval/s/tokens_mean": 5.0}
    last = {**scores, "eval/s/avg": 0.75, "eval/s/tokens_mean": 30.0}
    console.summary([{"step": 0, **scores}, {"step": 1}, {"step": 2, **last}], {"run": Path("there")})
    text = out.getvalue()
    assert "25.0% → 75.0%" in text
    assert "5.0 → 30.0" in text
    assert "there" in text


LINE = {
    "reward/mean": 0.25,
    "reward/accuracy": 0.25,
    "completion/tokens_mean": 31.4,
    "throughput/tokens_per_s": 1234.0,
    "sampler/logprob_gap_max": 1.2e-5,
    "time/step_s": 5.5,
}


def watched(steps: int, *, width: int = 200, terminal: bool = False, **options: Any) -> list[str]:
    """The lines printed by a run of the given steps that is evaluated before the first."""
    out = io.StringIO()
    console = RunConsole(quiet=False, steps=steps, console=Console(file=out, width=width), **options)
    if terminal:
        console.console._force_terminal = True
        console.console.no_color = True
    console.row({"step": 0, "reward/accuracy": 0.25}, [])
    for step in range(1, steps + 1):
        console.row({"step": step, **LINE}, [])
    return out.getvalue().splitlines()


def is_header(line: str) -> bool:
    return line.split()[:1] == ["step"] and "accuracy" in line


def test_every_column_is_explained_once_before_the_first_row() -> None:
    lines = watched(3)
    header = next(index for index, line in enumerate(lines) if is_header(line))
    legend = dict(line.split("  ", 1) for line in lines[1:header])
    assert list(legend) == [column.title for column in COLUMNS if column.meaning]
    assert "log-probability" in legend["gap"]
    assert sum(map(is_header, lines)) == 1


@pytest.mark.parametrize(("steps", "headers"), [(1, 1), (25, 1), (28, 1), (29, 1), (30, 2), (80, 4)])
def test_no_header_stands_before_the_last_rows(steps: int, headers: int) -> None:
    lines = watched(steps)
    assert sum(map(is_header, lines)) == headers
    assert not any(map(is_header, lines[-5:])) or steps < 5
    assert sum(f"/{steps}" in line for line in lines) == steps + 1


def test_without_a_first_evaluation_there_is_no_row_for_it() -> None:
    out = io.StringIO()
    RunConsole(quiet=False, steps=2, console=Console(file=out, width=80)).row({"step": 0, "adapter/version": 0}, ())
    assert out.getvalue() == ""


def test_reward_and_accuracy_stand_side_by_side_if_different() -> None:
    for same in (True, False):
        (header,) = filter(is_header, watched(2, reward_is_accuracy=same))
        assert ("reward" in header) != same
        assert "accuracy" in header
    plain, shaped = (load_config("quickstart.yaml", given).rewards for given in ((), ("rewards.format_weight=0.1",)))
    assert (plain.is_accuracy, shaped.is_accuracy) == (True, False)
    assert not load_config("quickstart.yaml", ["rewards.correct_weight=2"]).rewards.is_accuracy


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("terminal", [True, False])
def test_rows_are_as_wide_as_the_terminal_at_most(width: int, terminal: bool) -> None:
    rows = [line for line in watched(2, width=width, terminal=terminal) if "/2" in line or is_header(line)]
    assert len(rows) == 4
    assert max(map(len, rows)) <= max(width, 40)
    assert all("accuracy" in line for line in rows if is_header(line))


def test_a_run_on_a_board_has_no_row_that_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Without `eval.at_start`, nothing was measured before the first step."""
    board = Board(quiet=False, names=["one"])
    console = CellConsole(quiet=False, steps=2, board=board, name="one")
    console.row({"step": 0, "adapter/version": 0}, [])
    console.row({"step": 1, **LINE}, [])
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == ["step 1/2"]


def test_a_pipe_gets_lines_without_trailing_spaces() -> None:
    out = io.StringIO()
    console = RunConsole(quiet=False, steps=1, console=Console(file=out, width=80))
    console.print_rows({"a": "word " * 40, "longer": "one\ntwo", "[b]": "[c]"})
    assert out.getvalue().splitlines() == [
        f"a       {('word ' * 40).rstrip()}",
        "longer  one",
        "        two",
        "[b]     [c]",
    ]


def test_a_problem_is_shown_before_and_after() -> None:
    out = io.StringIO()
    console = RunConsole(quiet=False, steps=9, console=Console(file=out, width=200))
    before, after = (
        ShownAnswer(step=step, problem="1+2+3=?", reference="6", completion=text, verdict=verdict)
        for step, text, verdict in ((0, "[5]", "no_answer"), (9, "1+2=3\n3+3=\\boxed{6}" + " x" * 900, "correct"))
    )
    console.examples([before])
    assert out.getvalue() == ""
    console.examples([before, after])
    text = out.getvalue()
    assert "step 0, no answer  [5]" in text
    assert "step 9, correct    1+2=3\n" in text
    assert "[…]" in text
    assert len(text) < 800


def test_the_next_commands_are_whole_and_have_the_runs_paths(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    config = load_config("quickstart.yaml", [f"output_dir={run}", "lora.rank=3"])
    adapter = run / "adapters" / "v000025"
    report, score, serve = map(shlex.split, next_steps(config, adapter).values())
    assert report == ["python", "-m", "rl_engine.report", str(run)]
    # The command is accepted as far as the adapter, which does not exist.
    answer = CliRunner().invoke(evals, score[3:])
    assert answer.output.strip() == f"error: --adapter {adapter}: no such directory"
    assert serve[-1] == f"trained={adapter}"
    assert serve[serve.index("--max-lora-rank") + 1] == "8"
    full = load_config("quickstart.yaml", ["method=full", f"output_dir={run}"])
    assert all("lora" not in command for command in next_steps(full, adapter).values())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["method=full", "model.dtype=float32"], ["--dtype", "float32"]),
        (["method=full", "model.dtype=bfloat16"], []),
        (["model.dtype=float32"], []),  # auto means float32 for the embedded model
        (["model.dtype=bfloat16"], ["--dtype", "bfloat16"]),
        (["model.name=org/model", "model.dtype=float32"], ["--dtype", "float32"]),
        (["model.name=org/model", "model.dtype=bfloat16"], []),
    ],
)
def test_a_score_is_computed_as_the_run_computed(settings: list[str], told: list[str], tmp_path: Path) -> None:
    """On a CPU, where `--dtype auto` depends on the model."""
    _, score, _ = map(shlex.split, next_steps(load_config("quickstart.yaml", settings), tmp_path).values())
    given = score.index("--dtype") if "--dtype" in score else len(score)
    assert score[given : given + 2] == told


def test_the_server_is_started_as_the_build_of_the_machine_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `vllm` command asks for a package named vllm, which the build for CPUs is not."""
    config = load_config("quickstart.yaml", ["model.dtype=float32", "rollout.kv_cache_gib=0.5"])
    started = {}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for card in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda card=card: card)
        *_, command = next_steps(config, tmp_path).values()
        started[card] = shlex.split(command)
    assert started[True][:3] == ["vllm", "serve", str(EMBEDDED_DIR)]
    assert started[False][:5] == ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", str(EMBEDDED_DIR)]
    monkeypatch.undo()
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(started[False][3:])
    assert arguments.kv_cache_memory_bytes == 2**29
    assert arguments.max_model_len == -1  # as long as the cache allows
    assert (arguments.enforce_eager, arguments.enable_lora, arguments.max_lora_rank) == (True, True, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["eval.suites=[]"], "--suite held_out"),
        (["eval.suites=[gsm8k,held_out]"], "--suite gsm8k,held_out"),
        (["data.source=file", "data.path={problems}", "eval.suites=[]"], None),
        (["data.source=gsm8k", "eval.suites=[]"], None),
        (["data.source=mix", "data.mix=[{source: arithmetic}, {source: gsm8k}]", "eval.suites=[]"], "--suite held_out"),
        (
            ["data.source=file", "data.path={problems}", "data.columns.answer=key", "eval.suites=['{problems}']"],
            "--suite {problems} --output",
        ),
    ],
)
def test_what_is_suggested_to_be_scored_can_be(settings: list[str], words: str | None, tmp_path: Path) -> None:
    """Its own suites; without any, problems generated like its data and held out; without those, nothing."""
    places = {"problems": str(tmp_path / "mine.jsonl")}
    (tmp_path / "mine.jsonl").write_text('{"id": "1", "problem": "1+1", "key": "2"}\n')
    given = [text.format(**places) if "{p" in text else text for text in settings]
    config = load_config("quickstart.yaml", given)
    commands = list(next_steps(config, tmp_path / "adapters" / "v000001").values())
    scores = [command for command in commands if " evals " in command]
    if words is None:
        assert scores == []
    else:
        (score,) = scores
        assert words.format(**places) in score
    assert len(commands) == 2 + len(scores)


def test_the_revision_trained_is_the_one_scored_and_served(tmp_path: Path) -> None:
    config = load_config("quickstart.yaml", ["model.name=org/model", "model.revision=abc"])
    _, score, serve = next_steps(config, tmp_path).values()
    assert "--model org/model --revision abc" in score
    assert "api_server --model org/model --dtype" in serve or serve.startswith("vllm serve org/model --dtype")
    assert "--revision abc" in serve


def test_without_a_first_evaluation_no_beginning_is_claimed() -> None:
    out = io.StringIO()
    console = RunConsole(quiet=False, steps=2, console=Console(file=out, width=200))
    scores = {"eval/s/avg": 0.25, "eval/s/low": 0.2, "eval/s/high": 0.3, "eval/s/tokens_mean": 5.0}
    console.summary([{"step": 0}, {"step": 2, **scores}], {})
    assert "accuracy 25.0% after step 2  (95 % interval 20.0%–30.0%)" in out.getvalue()
    assert "→" not in out.getvalue()
    console.summary([{"step": 0}, {"step": 1, **scores}, {"step": 2, **scores}], {})
    assert "25.0% → 25.0%" in out.getvalue()
    assert "from step 1 on" in out.getvalue()


SPEAKS_ON = """
from rl_engine.run.console import RunConsole
console = RunConsole(quiet=False, steps=3)
for step in range(4):
    console.row({"step": step, "completion/tokens_mean": 9.0}, [])
    with console.phase("sampling"):
        pass
open("done", "w").close()
"""


@pytest.mark.parametrize("output", ["pipe", "full disk", "terminal"])
def test_a_run_goes_on_where_nobody_hears_it(output: str, tmp_path: Path) -> None:
    """As with `| head`, with `> log.txt` on a full disk, and when a terminal's window is closed under nohup."""
    if output == "full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        read, descriptor = pty.openpty() if output == "terminal" else os.pipe()
        os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", SPEAKS_ON]
    done = subprocess.run(
        program, cwd=tmp_path, env=environment, stdout=descriptor, stderr=subprocess.PIPE, check=False
    )
    os.close(descriptor)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").exists()


def test_a_terminal_may_be_closed_during_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a run is some phase, with a status that rich draws: the run then ended in `Input/output error`."""
    read, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(slave, "w", buffering=1) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        console = RunConsole(quiet=False, steps=3)
        assert console.console.is_terminal
        with console.phase("sampling"):
            os.close(read)
            console.note("stopped as asked")
        assert Path(f"/proc/self/fd/{terminal.fileno()}").readlink() == Path(os.devnull)
