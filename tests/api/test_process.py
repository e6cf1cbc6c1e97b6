"""A command in a separate process: what it prints, how it ends, and that nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from rl_engine.api.child import LOOK_S
from rl_engine.api.process import CommandError, environment, running, start
from tests.helpers.run_directories import start_run
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ended(source: str) -> CommandError:
    """The error of a command that executes only this source."""
    Path("command.py").write_text(source)
    with running("command", (), show=False) as child:
        while child.is_at_work():
            pass
        with pytest.raises(CommandError) as caught:
            child.check()
    return caught.value


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        (
            "import sys; print('error: no such key\\nthe way out', file=sys.stderr); sys.exit(2)",
            2,
            "no such key\nthe way",
        ),
        ("raise RuntimeError('a fault of ours')", 1, "command ended with code 1: RuntimeError: a fault of ours"),
        ("import os; print('at work', flush=True); os.kill(os.getpid(), 9)", -9, "was ended by SIGKILL: at work"),
    ],
)
def test_an_early_end_is_an_exception_with_the_commands_line(source: str, code: int, message: str) -> None:
    error = ended(source)
    assert error.code == code
    assert message in str(error)
    assert str(error).count("\n") <= 1


def test_what_it_prints_is_shown_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("command.py").write_text(
        "import time\nprint('one\\nin /nowhere/gone.json', flush=True)\nprint('two', end='', flush=True)\n"
    )
    shown = ""
    with running("command", (), show=True, hide="/nowhere/gone") as child:
        while child.is_at_work():
            shown += capsys.readouterr().out
            assert "two" not in shown or child.popen.poll() is not None
    assert shown + capsys.readouterr().out == "one\ntwo"


SAVES = """
import signal, sys, time
from pathlib import Path
def save(*_):
    Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path("begun").touch()
time.sleep(100)
"""


@pytest.mark.parametrize("why", [KeyboardInterrupt, ValueError])
def test_what_ends_the_block_stops_the_command_which_saves(why: type[BaseException]) -> None:
    Path("command.py").write_text(SAVES)
    processes = []

    def block() -> None:
        with running("command", (), show=False) as child:
            processes.append(child.popen)
            until(Path("begun").exists)
            raise why

    with pytest.raises(why):
        block()
    assert [process.poll() for process in processes] == [143]
    assert Path("saved").exists()


def test_it_leaves_when_its_parent_is_killed() -> None:
    Path("command.py").write_text(SAVES)
    code = (
        "from pathlib import Path; from rl_engine.api.process import start; import time;"
        "print(start('command', (), Path('log')).pid, flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(Path("begun").exists)
        parent.kill()
    until(Path("saved").exists)
    until(lambda: not psutil.pid_exists(child))


def test_it_stays_when_the_thread_that_started_it_ends() -> None:
    """For example, a web server iterates over a run's steps in whichever thread is free."""
    wait = 3 * LOOK_S
    Path("command.py").write_text(f"import time; print('at', flush=True); time.sleep({wait}); print('work')")
    with ThreadPoolExecutor(1) as pool:
        child = pool.submit(start, "command", (), Path("log")).result()
        until(lambda: Path("log").read_text() != "")
    assert (child.wait(60), Path("log").read_text()) == (0, "at\nwork\n")


def test_a_module_importable_here_is_importable_there(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/command.py").write_text("print('found'); raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(Path("elsewhere").absolute()))
    with running("command", (), show=False) as child:
        child.popen.wait(60)
        with pytest.raises(CommandError, match="code 3: found"):
            child.check()


def test_train_says_what_the_command_says_and_touches_nothing() -> None:
    from rl_engine import load_config, train

    start_run(Path("run"))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    # The child must not see the variables of what launched this process.
    launched = {name: os.environ.pop(name, None) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        with pytest.raises(CommandError) as caught:
            train(load_config("quickstart.yaml", {"output_dir": "run"}), show=False)
    finally:
        os.environ.update({name: value for name, value in launched.items() if value is not None})
    assert str(caught.value) == (
        "output_dir: run holds a run already; --resume continues it, --overwrite replaces it, "
        "or give another output_dir"
    )
    assert caught.value.code == 2
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
