"""What the commands share: one-line errors, and no request to the hub when none is needed."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from evals.command import (
    exit_explained,
    exit_with_error,
    lasting_console,
    print_loading,
    print_table,
    quiet_libraries,
)
from rewards.command import Command, print_error, settle_rank
from rewards.streams import LastingOutput, check_heard, open_closed_streams
from rl_engine.command import (
    RunFailedError,
    explained,
    instead_of_resuming,
    losses_explained,
    what_takes_less,
    with_hint,
)
from rl_engine.config import Config
from rl_engine.config.file import read_config
from rl_engine.config.resuming import TABLES, ResumeRule, rules_of
from rl_engine.config.sft import SftConfig
from rl_engine.run.board import Board
from rl_engine.run.records import Records
from rl_engine.train.__main__ import app
from rl_engine.train.checks import wanted_of_hub
from rollout.hub import stay_offline_without


def test_an_error_is_one_line_of_stderr_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    message = "data.path: no such file: [a]/" + "long/" * 40
    with pytest.raises(typer.Exit) as end:
        exit_with_error(message, 2)
    assert end.value.exit_code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_no_figure_of_a_table_is_cut_off() -> None:
    """On a terminal of 80 columns: headings take several lines, and a longer table has longer lines."""
    for count in (8, 14):
        table = Table(*(f"a long heading {number}" for number in range(count)), box=None, padding=(0, 2))
        figures = [f"0.0{number}386" for number in range(10, 10 + count)]
        table.add_row(*figures)
        terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
        print_table(table, terminal)
        lines = terminal.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert [line.split() for line in lines][-1] == figures
        assert " ".join(lines).count("heading") == count


SAVED = "What was saved before stands: --resume continues it."
UNSAVED = "No checkpoint of this run was saved."


@pytest.mark.parametrize(
    ("error", "saved", "hints"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True, ["Make space. " + SAVED]),
        (OSError(errno.ENOSPC, "No space left on device"), False, ["Make space. " + UNSAVED]),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True, ["Make space. " + SAVED]),
        (OSError(errno.EIO, "Input/output error"), True, [SAVED]),
        (PermissionError(errno.EACCES, "Permission denied"), False, [UNSAVED]),
        (OSError("the library's own words"), False, []),
    ],
)
def test_an_error_of_the_system_comes_with_the_way_out(
    error: OSError, saved: bool, hints: list[str], make_config: Callable[..., Config]
) -> None:
    """Nothing is reported as saved if nothing is."""
    config = make_config("log.tensorboard=false")
    run = Path(config.output_dir)
    Records(run, config).open(-1)
    if saved:
        (run / "checkpoints" / "step000010").mkdir(parents=True)
    # A run that was given the rate `auto` has a number on record.
    given = make_config("log.tensorboard=false", "optim.lr=auto")
    assert with_hint(error, given).split("\n") == [str(error), *hints]


CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB. If reserved but "
    "unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF"
)
NO_MEMORY = [
    (torch.OutOfMemoryError(CUDA), "GPU 0 has a total capacity of 79.19 GiB."),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "CUDA error: out of memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "`cublasCreate`"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "8 bytes."),
    (MemoryError(), "the machine gives no more"),
    (MemoryError("Unable to allocate 7.45 GiB for an array"), "Unable to allocate 7.45 GiB for an array"),
]


@pytest.mark.parametrize(("error", "end"), NO_MEMORY, ids=lambda value: str(value)[:30])
def test_where_memory_runs_out_a_line_says_so(error: Exception, end: str) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command(cls=Command)
    def asks_for_much() -> None:
        raise error

    result = CliRunner().invoke(app)
    assert (result.exit_code, result.stderr.startswith("error: out of memory: ")) == (1, True)
    assert result.stderr.endswith(f"{end}\n")
    assert len(result.stderr.splitlines()) == 1


GLOO = "[enforce fail at /pytorch/gloo/transport/tcp/device.cc:186] rv != -1. -1 vs -1. Too many open files"


@pytest.mark.parametrize(
    ("message", "said", "option"),
    [
        (GLOO, "Too many open files", "-n"),
        ("can't start new thread", "can't start new thread", "-u"),
        ("Resource temporarily unavailable", "Resource temporarily unavailable", "-u"),
    ],
)
def test_a_limit_of_the_shell_is_named(
    message: str, said: str, option: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries report such limits in errors without a type of their own."""
    monkeypatch.setattr("resource.getrlimit", lambda limit: (64, 64))
    line = f"{said}: this shell allows 64; raise it with ulimit {option}"
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command(cls=Command)
    def takes_many() -> None:
        raise RuntimeError(message)

    result = CliRunner().invoke(app)
    assert (result.exit_code, result.stderr) == (1, f"error: {line}\n")
    with pytest.raises(RunFailedError, match=f"^step 3: {line}\n"), losses_explained(make_config(), lambda: "step 3: "):
        raise RuntimeError(message)
    monkeypatch.setattr("resource.getrlimit", lambda limit: (resource.RLIM_INFINITY,) * 2)
    assert (
        CliRunner().invoke(app).stderr
        == f"error: {said}: this shell sets no limit, so its container or job does (pids.max)\n"
    )


def test_another_error_is_left_as_it_is(make_config: Callable[..., Config]) -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")):
        with pytest.raises(type(error)) as raised, losses_explained(make_config()):
            raise error
        assert raised.value is error


def sft_config(*settings: str) -> SftConfig:
    return read_config(SftConfig, "sft_jsonl.yaml", ["data.path=answers.jsonl", *settings])


def test_an_out_of_memory_error_suggests_what_takes_less(make_config: Callable[..., Config]) -> None:
    """The settings named first may be changed with --resume, and settings that already are as advised are not named."""
    fresh = "learner.tokens_per_microbatch=64", "learner.gradient_checkpointing=false"
    spared = "train.microbatch_size=1", "train.gradient_checkpointing=true"
    for config, keys in (
        (make_config(*fresh), {"learner.tokens_per_microbatch", "learner.gradient_checkpointing"}),
        (sft_config(*spared), {"train.microbatch_size"}),
    ):
        now, _, later = what_takes_less(config).partition("; in a new run, ")
        table = TABLES[type(config)]
        assert set(re.findall(r"\w+\.\w+", now)) == keys
        assert {rule for key in keys for rule in rules_of(table, key)} == {ResumeRule.ROUNDING}
        assert [rules_of(table, key) for key in re.findall(r"\w+\.\w+", later)] == [[ResumeRule.FIXED]]
        with pytest.raises(RunFailedError) as failed, losses_explained(config, lambda: "step 3: "):
            raise MemoryError
        assert str(failed.value).splitlines() == [
            "step 3: out of memory: the machine gives no more",
            what_takes_less(config),
            UNSAVED,
        ]


def test_a_run_that_lost_a_rank_is_advised_to_resume(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gloo's error is a plain RuntimeError: torch has no type for it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = "[/pytorch/third_party/gloo/transport/tcp/pair.cc:537] Read error [::1]:14029: Connection reset by peer."
    with pytest.raises(RunFailedError) as failed, losses_explained(make_config(), lambda: "step 3: "):
        raise RuntimeError(f"{said} This is typically caused by a remote worker hanging or bugs in the application.")
    assert str(failed.value).splitlines() == [
        "step 3: rank 0 lost another rank (Read error [::1]:14029: Connection reset by peer): if that was not killed, "
        "its output says why",
        UNSAVED,
    ]


def test_a_diverged_run_names_only_versions_that_there_are(make_config: Callable[..., Config]) -> None:
    """Supervised training publishes none before its end."""
    assert "or from an earlier version (lora.start_from=" in instead_of_resuming(make_config())
    assert "version" not in instead_of_resuming(sft_config())


def test_nothing_is_called_saved_that_is_not(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no checkpoint, or only one of an earlier run with other settings. And nothing that is saved is denied,
    where this user may not read the settings."""
    error, config = OSError(errno.EIO, "Input/output error"), make_config("log.tensorboard=false")
    assert with_hint(error, config).endswith("\nNo checkpoint of this run was saved.")
    Records(Path(config.output_dir), config).open(-1)
    (Path(config.output_dir) / "checkpoints" / "step000001").mkdir(parents=True)
    assert with_hint(error, config).endswith("--resume continues it.")
    forbidden = PermissionError(errno.EACCES, "Permission denied")
    assert explained(forbidden, config) == (with_hint(forbidden, config), 2)
    assert with_hint(error, make_config("seed=1")).endswith("\nNo checkpoint of this run was saved.")

    def denied(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("rl_engine.run.resumption.read_settings", denied)
    assert with_hint(error, config).endswith("--resume continues it.")


@pytest.mark.parametrize(
    ("overrides", "offline"),
    [
        ((), True),
        (("model.name=org/model",), False),
        (("data.source=gsm8k", "prompt.template=chat"), False),
        (("eval.suites=[held_out,gsm8k]",), False),
        (("eval.suites=[held_out,gsm8k]", "eval.data_dir=data"), True),
    ],
)
def test_the_hub_is_shut_out_where_all_is_here(
    overrides: tuple[str, ...], offline: bool, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    stay_offline_without(wanted_of_hub(make_config(*overrides)))
    assert (os.environ["HF_HUB_OFFLINE"] == "1") is offline


def test_a_base_model_that_is_not_there_is_reported_at_once(tmp_path: Path) -> None:
    arguments = ["--config", "quickstart.yaml", "model.name=./gone", f"output_dir={tmp_path / 'run'}"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "'./gone' is not a model directory" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("encoding", "errors", "said"),
    [
        ("ascii", "strict", r"2 \xd7 8 \u2026 \udce4"),
        ("ascii", "surrogateescape", r"2 \xd7 8 \u2026 \udce4"),
        ("latin-1", "strict", r"2 × 8 \u2026 \udce4"),
        ("utf-8", "strict", r"2 × 8 … \udce4"),
        ("utf-8", "surrogateescape", "2 × 8 … \udce4"),
    ],
)
def test_no_command_ends_for_what_an_old_locale_cannot_say(
    encoding: str, errors: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    r"""`\udce4` is a byte of a file name that is not UTF-8, such as `ä` on an old disk."""
    app = typer.Typer()

    @app.command(cls=Command)
    def count() -> None:
        print("2 × 8 … \udce4")

    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding, errors=errors))
    app([], standalone_mode=False)
    sys.stdout.flush()
    assert out.getvalue().decode(encoding, "surrogateescape") == f"{said}\n"


def test_a_full_disk_behind_stderr_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        print_error("no such file", 2)
        print_loading("torch")
        assert Path(f"/proc/self/fd/{full.fileno()}").readlink() == Path(os.devnull)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_is_gone_ends_no_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `2>&1 | head`: rich itself would exit with code 1, in the middle of whatever the program does."""
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with os.fdopen(write, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, name, pipe)
        quiet_libraries()
        logging.getLogger("a library").warning("beware")
        Board(quiet=False, names=["one"]).error("one", "it failed")
        print_error("no such file", 2)
        assert Path(f"/proc/self/fd/{pipe.fileno()}").readlink() == Path(os.devnull)


def test_a_command_that_only_prints_fails_if_nobody_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script would take a dry run into a full disk for one that found nothing wrong."""
    check_heard()
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        lasting_console().print("12 cells due")
        with pytest.raises(OSError, match=r"^standard output cannot be written, .*: No space left on device$"):
            check_heard()
        monkeypatch.setattr(LastingOutput, "failed", (full, BrokenPipeError(errno.EPIPE, "Broken pipe")))
        check_heard()  # `| head` has what it wanted


def test_what_the_system_refuses_is_no_error_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = (errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EACCES)
    of_paths = [OSError(number, os.strerror(number), "data.jsonl") for number in numbers]
    for error, code in [(OSError(errno.ENOSPC, "full"), 1), *((one, 2) for one in of_paths)]:
        with pytest.raises(typer.Exit) as left:
            exit_explained(error)
        assert left.value.exit_code == code
    assert "full" in capsys.readouterr().err


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Otherwise the file would contain whatever a library's C code prints."""
    program = f"""
import os, sys
from {open_closed_streams.__module__} import open_closed_streams as opened
opened()
print("no"), print("no", file=sys.stderr), sys.stdin.read()
with open(sys.argv[1], "w") as file:
    file.write(str(file.fileno() > 2))
    os.system("echo printed; echo printed >&2")
"""
    line = 'exec "$@" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", line, "sh", sys.executable, "-c", program, tmp_path / "written"], check=True)
    assert (tmp_path / "written").read_text() == "True"


@pytest.mark.parametrize(("count", "said"), [(None, "error: stopped\n"), ("4", "")])
def test_a_rank_of_another_program_silences_no_command(
    count: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the launcher's first process says that all were stopped."""
    app = typer.Typer()

    @app.command(cls=Command)
    def stop() -> None:
        print_error("stopped", 130)

    told = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": count}
    for name, value in told.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    app([], standalone_mode=False)
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', where a launcher gives a number: start"),
        ({"WORLD_SIZE": "2", "RANK": "$SLURM_PROCID"}, "RANK is '$SLURM_PROCID', where"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500 "}, "MASTER_PORT is '29500 ', where"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 and WORLD_SIZE is 2: the ranks are 0 to 1"),
    ],
)
def test_what_no_launcher_says_is_refused_by_its_name(
    told: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command(cls=Command)
    def unreached() -> None:
        pytest.fail("the command ran")

    monkeypatch.setattr(os, "environ", dict(told))
    with pytest.raises(SystemExit, match="2"):
        app([], standalone_mode=False)
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("told", "settled"),
    [
        ({"RANK": "3"}, {}),
        ({"RANK": "3", "LOCAL_RANK": "3", "SLURM_LOCALID": "1"}, {"SLURM_LOCALID": "1"}),
        ({"RANK": "3", "WORLD_SIZE": "4"}, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1"},
            {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        ),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"},
            {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"},
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"},
            {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"},
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"},
            {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        ),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_LOCALID": "1"}, {"LOCAL_RANK": "1"}),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "SLURM_LOCALID": "0"}, {}),
        ({"RANK": "3", "WORLD_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1"}, {"LOCAL_RANK": "1"}),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"},
        ),
        ({"WORLD_SIZE": "4"}, {}),
    ],
    ids=[
        "left",
        "left-in-Slurm",
        "a-machine-each",
        "address",
        "one-machine",
        "first-of-one-machine",
        "first",
        "Slurm",
        "torchrun-in-Slurm",
        "Intel-MPI",
        "by-hand-in-Slurm",
        "nobody",
    ],
)
def test_a_process_knows_its_number_on_its_machine(
    told: dict[str, str], settled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PyTorchJob gives each process a machine of its own and does not set LOCAL_RANK."""
    environment = dict(told)
    monkeypatch.setattr(os, "environ", environment)
    settle_rank()
    assert environment == {**(told if "WORLD_SIZE" in told else {}), **settled}


def test_python_without_docstrings_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers used to fail with a message about the docstrings in its own code, or to log a page of them."""
    monkeypatch.setattr("evals.command.sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    print_loading("torch")  # torch alone loads without docstrings
    with pytest.raises(typer.Exit):
        print_loading("torch and transformers")
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: PYTHONOPTIMIZE is 2 (python -OO)")


def test_a_full_disk_is_not_the_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`report` and `inspect` ended with 2 on a full disk, as for a run that is not there."""

    def fills(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report.html")

    from rl_engine.report import __main__ as report

    monkeypatch.setattr(report, "check_run", fills)
    assert CliRunner().invoke(report.app, [str(tmp_path)]).exit_code == 1
    monkeypatch.undo()
    assert CliRunner().invoke(report.app, [str(tmp_path)]).exit_code == 2
