"""The worker pool: started lazily, usable from anywhere, replaced when it dies, gone when closed."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rewards import GradeItem, Grader, GradeResult
from rewards.workers import fork_server, wire
from rewards.workers.processes import environment

REPOSITORY = Path(__file__).resolve().parents[3]
RIGHT = ("\\boxed{2x+3}", "3+2x")
WRONG = ("\\boxed{7}", "8")
HANGS = ("\\boxed{\\sqrt{10^{100000}+1}}", "10^{50000}")


@pytest.fixture(scope="module")
def pool_grader() -> Iterator[Grader]:
    with Grader(workers=2, timeout_s=2.0) as grader:
        yield grader


def verdicts(results: list[GradeResult]) -> list[str]:
    return [str(result.verdict) for result in results]


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def is_fork_server(process: psutil.Process) -> bool:
    return process.status() != psutil.STATUS_ZOMBIE and "rewards.workers.fork_server" in process.cmdline()


def inheritable_sockets() -> list[int]:
    """The inheritable sockets beyond the standard streams."""
    links = [(int(each.name), str(each.readlink())) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return [
        number for number, told in links if number > 2 and told.startswith("socket:") and os.get_inheritable(number)
    ]


def wait_until_gone(processes: list[psutil.Process], seconds: float = 20.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def test_nothing_starts_before_the_first_item() -> None:
    before = {process.pid for process in descendants()}
    grader = Grader(workers=2)
    assert {process.pid for process in descendants()} == before
    assert grader.grade([]) == []
    assert {process.pid for process in descendants()} == before
    grader.close()


@pytest.mark.parametrize(
    "items",
    [
        ("3+4=7", "7"),
        ["57"],
        "3+4=7",
        [("7", 7)],
        [("7", "7", "3+4")],
        [GradeItem(completion="7", reference=7)],  # type: ignore[arg-type]
        [{}],
    ],
    ids=repr,
)
def test_what_is_no_item_is_not_graded(items: Any, grader: Grader) -> None:
    """Of a text, the first character was graded against the second."""
    with pytest.raises(TypeError, match=r"^grade takes a list of \(completion, reference\), both of them text, or of"):
        grader.grade(items)
    with pytest.raises(TypeError, match=r"^check_references takes a list of texts, not "):
        grader.check_references(items if isinstance(items, str) else [*items, 7])  # type: ignore[list-item]


def test_close_leaves_no_process_behind() -> None:
    before, sockets = {process.pid for process in descendants()}, inheritable_sockets()
    with Grader(workers=2, timeout_s=2.0) as grader:
        assert verdicts(grader.grade([RIGHT] * 40)) == ["correct"] * 40
        mine = [process for process in descendants() if process.pid not in before]
        assert len(mine) == 3  # the fork server and two workers
        assert inheritable_sockets() == sockets  # none is inherited by other child processes
    assert wait_until_gone(mine)
    grader.close()
    with pytest.raises(ValueError, match="closed"):
        grader.grade([RIGHT])


def test_a_forgotten_grader_is_closed_by_the_collector() -> None:
    before = {process.pid for process in descendants()}
    grader = Grader(workers=1)
    grader.grade([WRONG])
    mine = [process for process in descendants() if process.pid not in before]
    del grader
    assert wait_until_gone(mine)


def test_a_hanging_item_costs_only_its_own_verdict(pool_grader: Grader) -> None:
    results = pool_grader.grade([RIGHT, HANGS, WRONG, RIGHT, HANGS, *[WRONG] * 30])
    assert verdicts(results) == ["correct", "timeout", "incorrect", "correct", "timeout", *["incorrect"] * 30]
    zombies = [process for process in descendants() if process.status() == psutil.STATUS_ZOMBIE]
    time.sleep(0.2)
    assert not [process for process in zombies if process.is_running() and process.status() == psutil.STATUS_ZOMBIE]


def test_replacements_are_reported_once_for_each_cause(caplog: pytest.LogCaptureFixture) -> None:
    others = descendants()
    with caplog.at_level(logging.WARNING, logger="rewards"), Grader(workers=1, timeout_s=1.0) as grader:
        assert verdicts(grader.grade([HANGS, WRONG, HANGS])) == ["timeout", "incorrect", "timeout"]
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL):
            assert verdicts(grader.grade([WRONG])) == ["incorrect"]
            (worker,) = (p for p in descendants() if p not in others and p.ppid() != os.getpid())
            worker.send_signal(number)
            assert wait_until_gone([worker])
        assert verdicts(grader.grade([WRONG])) == ["incorrect"]
        assert grader.restarts == 5
    said = [record.getMessage() for record in caplog.records if record.name.startswith("rewards")]
    assert [text.partition(" and was replaced")[0] for text in said] == [
        "a worker ran over the time limit",
        "a worker died, killed by signal 9 (SIGKILL),",
        "a worker died, killed by signal 11 (SIGSEGV),",
    ]


def test_a_killed_worker_is_replaced_and_its_items_regraded(pool_grader: Grader) -> None:
    items = [RIGHT, WRONG] * 200
    pool_grader.grade(items[:2])
    fork_server = next(p for p in descendants() if is_fork_server(p) and p.children())

    def kill_workers() -> None:
        for child in fork_server.children():
            child.kill()

    killer = threading.Timer(0.05, kill_workers)
    killer.start()
    assert verdicts(pool_grader.grade(items)) == ["correct", "incorrect"] * 200
    killer.join()


def test_a_killed_fork_server_is_started_again() -> None:
    others = descendants()
    with Grader(workers=2, timeout_s=2.0) as grader:
        grader.grade([RIGHT])
        (fork_server,) = (p for p in descendants() if p not in others and p.ppid() == os.getpid())
        fork_server.kill()
        fork_server.wait(10)
        assert verdicts(grader.grade([RIGHT, WRONG])) == ["correct", "incorrect"]


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        (r"\sum_{n=0}^\infty 2^{-n}", "2", "correct"),
        ("2", r"\sum_{n=0}^\infty 2^{-n}", "incorrect"),
        ("n!", r"n \cdot (n-1)!", "correct"),
        (r"\prod_{k=1}^{5} k", "120", "correct"),
        (r"\int_0^1 x \, dx", r"\frac{1}{2}", "correct"),
        (r"\lim_{x \to 0} \frac{\sin x}{x}", "1", "correct"),
    ],
)
def test_a_confined_worker_needs_no_further_module(grader: Grader, reference: str, answer: str, verdict: str) -> None:
    """SymPy imports numpy and more on first use, which a worker without access to the environment cannot."""
    (result,) = grader.grade([(f"\\boxed{{{answer}}}", reference)])
    assert result.verdict == verdict, result.detail


def test_what_libraries_reserve_counts_against_no_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenBLAS, for example, reserves memory per core, once for numpy and once for scipy: on sixteen cores more than
    `memory_mib`."""
    (tmp_path / "sitecustomize.py").write_text("import mmap\nreserved = mmap.mmap(-1, 2**31)\n")
    monkeypatch.syspath_prepend(tmp_path)
    items = [(f"\\boxed{{\\frac{{{n}x}}{{7}} + \\sqrt{{{n}}}}}", f"\\sqrt{{{n}}} + {n}x/7") for n in range(11, 41)]
    with Grader(workers=1) as grader:
        results = grader.grade(items)
        assert [(str(result.verdict), result.detail) for result in results] == [("correct", "compared")] * len(items)
        assert grader.restarts == 0


SWALLOWED = """
import rewards.judge
from rewards import RewardConfig
from rewards.judge import Judgement
from rewards.types import Verdict
from rewards.workers import limits, worker

def tries(mib):
    held = []
    try:
        while len(held) < mib:
            held.append(bytearray(2**20))
    except Exception:
        pass
    return Judgement(Verdict.INCORRECT, None, "compared")

rewards.judge.judge_completion = lambda completion, *_, **__: tries(int(completion))
judge = worker._Judge({**RewardConfig(memory_mib=512).model_dump(mode="json"), "tasks": []})
limits.confine(memory_mib=512, own_code=False)
for mib in (0, 400, 1000, 0):
    print(judge({"completion": str(mib), "reference": "1", "problem": ""})["detail"])
"""


def test_memory_that_a_library_ran_out_of_is_no_answer() -> None:
    """math-verify catches every exception: an answer for which memory ran out is an error, not wrong."""
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], env=environment(own_code=True), capture_output=True, text=True, check=True
    )
    short = "out of memory (rewards.memory_mib is 512)"
    # After such an answer the worker is replaced, because it could not tell a later shortage from this one.
    assert done.stdout.splitlines() == ["compared", "compared", short, "compared"], done.stderr


def test_what_forks_workers_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    code = "import os; from rewards.workers.worker import preload; preload({'tasks': []});"
    code += "print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(own_code=True), capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


def test_a_grader_that_ends_while_they_load_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its first seconds, every command that grades printed one, after it had ended."""
    grader, theirs = socket.socketpair()
    with grader:
        grader.sendall(wire.encode({"tasks": []}))
    monkeypatch.setattr(sys, "argv", ["fork_server", str(theirs.detach())])
    monkeypatch.setattr(fork_server, "preload", lambda _: None)
    fork_server.main()


def test_threads(pool_grader: Grader) -> None:
    outcomes: dict[int, list[str]] = {}

    def work(number: int) -> None:
        outcomes[number] = verdicts(pool_grader.grade([RIGHT, WRONG, HANGS if number == 0 else RIGHT]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes[0] == ["correct", "incorrect", "timeout"]
    assert all(outcomes[number] == ["correct", "incorrect", "correct"] for number in (1, 2, 3))


def test_a_grader_started_in_a_short_thread_outlives_it() -> None:
    with Grader(workers=1, timeout_s=2.0) as grader:
        thread = threading.Thread(target=grader.grade, args=([RIGHT],))
        thread.start()
        thread.join()
        assert verdicts(grader.grade([RIGHT, WRONG])) == ["correct", "incorrect"]
        assert grader.restarts == 0


def test_asyncio(pool_grader: Grader) -> None:
    async def main() -> list[list[GradeResult]]:
        calls = [asyncio.to_thread(pool_grader.grade, [RIGHT, WRONG]) for _ in range(3)]
        return await asyncio.gather(*calls)

    assert all(verdicts(results) == ["correct", "incorrect"] for results in asyncio.run(main()))


def _grade_in_child(grader: Grader, queue: multiprocessing.Queue[list[str]]) -> None:
    queue.put(verdicts(grader.grade([RIGHT, WRONG])))
    grader.close()


def test_a_forked_child_uses_workers_of_its_own(pool_grader: Grader) -> None:
    pool_grader.grade([RIGHT])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_grade_in_child, args=(pool_grader, queue))
    child.start()
    assert queue.get(timeout=120) == ["correct", "incorrect"]
    child.join(30)
    assert child.exitcode == 0
    assert verdicts(pool_grader.grade([RIGHT, WRONG])) == ["correct", "incorrect"]


SCRIPT = """
import sys
from rewards import Grader

grader = Grader(workers=2, timeout_s={limit})
print(*[r.verdict for r in grader.grade([({right!r}, {reference!r})])], flush=True)
{then}
"""


def run_script(then: str, limit: float = 3.0) -> subprocess.Popen[str]:
    """Run a program without a main guard; every start method of multiprocessing would fail on it, but our workers do
    not."""
    source = SCRIPT.format(limit=limit, right=RIGHT[0], reference=RIGHT[1], then=textwrap.dedent(then))
    return subprocess.Popen(
        [sys.executable, "-c", source], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_script_without_a_main_guard_ends_cleanly() -> None:
    with run_script("pass") as script:
        out, err = script.communicate()
        assert script.returncode == 0
    assert out == "correct\n"
    assert err == ""


def test_under_spawn() -> None:
    then = """
    import multiprocessing
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        code = "__import__('rewards').Grader(workers=1).grade([('\\\\\\\\boxed{1}', '1')])[0].verdict"
        print(pool.apply(eval, (code,)))
    """
    with run_script(then) as script:
        out, err = script.communicate()
    assert out == "correct\ncorrect\n", err


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_when_the_program_is_stopped_its_workers_go_with_it(signal_number: signal.Signals) -> None:
    """Ctrl-C, kill and kill -9 in the middle of an item that would take a minute."""
    # A shell that runs the tests in the background makes them ignore Ctrl-C, and child processes inherit that.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); print('listening', flush=True)"
    then = f"{listen}; grader.grade([({HANGS[0]!r}, {HANGS[1]!r})])"
    with run_script(then, limit=60.0) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "correct\n"
        assert script.stdout.readline() == "listening\n"
        children = psutil.Process(script.pid).children(recursive=True)
        assert children
        time.sleep(0.3)
        script.send_signal(signal_number)
        script.wait(60)
        assert script.returncode != 0
        assert wait_until_gone(children)


def test_importing_is_light() -> None:
    code = (
        "import sys, rewards.grader;"
        "heavy = {'torch', 'vllm', 'transformers', 'sympy', 'math_verify', 'latex2sympy2_extended', 'trl', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
