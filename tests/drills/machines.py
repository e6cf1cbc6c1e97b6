"""This machine → two, joined by a cable that can be pulled: namespaces for network, processes, files and names.

Each has its own `/dev/shm` and, at the same path, its own directory for temporary files; they share the rest of the
disk, as if they had the same environment at the same path.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from rl_engine.run.records import read_metrics
from tests.drills.fork import MARK
from tests.helpers.waiting import until

ROOT = Path(__file__).resolve().parents[2]
HEAD, OTHER = "10.99.7.1", "10.99.7.2"
# The first process in the namespace: it waits for every process that loses its parent.
BOOT = "hostname {name}; mount --bind {own} {shared}; mount -t tmpfs tmpfs /dev/shm; while sleep 1; do :; done"
# The cable ends in a switch on the head. Pulling it takes down the switch's port, but neither side's interface.
PLUG = (
    "ip link set lo up; ip link add switch type bridge; ip link add plug type veth peer name eth netns {other}; "
    f"ip link set plug master switch up; ip link set switch up; ip addr add {HEAD}/24 dev switch; "
    "ip route add default dev switch"
)
CABLE = f"ip link set lo up; ip link set eth up; ip addr add {OTHER}/24 dev eth; ip route add default dev eth"

NO_DASHBOARD = "--include-dashboard=false"
# The same as `python -m rl_engine.train`.
COMMAND = "import sys; from rl_engine.train.__main__ import app; sys.exit(app())"


@dataclass(frozen=True, slots=True)
class Machine:
    """One of the two machines. It disappears with its first process."""

    first: int
    """The first process's pid, as seen from outside."""
    environment: dict[str, str]

    def command(self, *words: str) -> list[str]:
        """The command that runs `words` on this machine, at the project's root."""
        return ["nsenter", f"--target={self.first}", "-m", "-u", "-i", "-n", "-p", f"--wd={ROOT}", *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(self.command(*words), env=self.environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ray(self, *words: str) -> str:
        return self.run(str(Path(sys.executable).with_name("ray")), *words)

    def workers(self, doing: str = "") -> list[psutil.Process]:
        """Workers of a pool on this machine that are doing this."""
        return [each for each in pool_workers(doing) if self.has(each.pid)]

    def has(self, pid: int) -> bool:
        """Whether the process with this pid, as seen from outside, is on this machine."""
        with contextlib.suppress(OSError):
            return network_of(pid) == network_of(self.first)
        return False

    def signal(self, number: int) -> None:
        """Send a signal to every process on this machine."""
        for pid in psutil.pids():
            if self.has(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)


def network_of(pid: int) -> Path:
    """The network namespace of a process."""
    return Path(f"/proc/{pid}/ns/net").readlink()


def pool_workers(doing: str = "") -> list[psutil.Process]:
    """Workers of the drill's runs, on any machine, that are doing this: Ray writes it into a process's title."""
    title, found = f"ray::PoolWorker.{doing}".rstrip(".").encode(), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError, psutil.Error):
            if path.read_bytes().startswith(title):
                process = psutil.Process(int(path.parent.name))
                if process.environ().get(MARK) == str(os.getpid()):
                    found.append(process)
    return found


@contextlib.contextmanager
def two_machines(place: Path) -> Iterator[tuple[Machine, Machine]]:
    """The head and the other machine. `place` needs a short name, because Ray's sockets are below it. Raises `OSError`
    if namespaces cannot be made."""
    shared, token = place / "t", place / "token"
    shared.mkdir()
    token.write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"TMPDIR": str(shared), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # Ray's own niceness for workers, 15, is meant for machines of their own.
    environment |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    kinds = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with contextlib.ExitStack() as stack:
        machines = []
        for name in ("head", "other"):
            (place / name).mkdir()
            boot = BOOT.format(name=name, own=place / name, shared=shared)
            process = subprocess.Popen(["unshare", *kinds, "sh", "-c", boot])
            stack.callback(process.wait)
            stack.callback(process.kill)
            until(lambda: psutil.Process(process.pid).children(), 10)  # noqa: B023 - called at once
            machines.append(Machine(psutil.Process(process.pid).children()[0].pid, environment))
        head, other = machines
        until(lambda: other.run("hostname") == "other\n" and other.run("mount").count(str(shared)), 10)
        for machine, words in ((head, PLUG.format(other=other.first)), (other, CABLE)):
            # From outside, where the other machine's first process has this pid.
            subprocess.run(["nsenter", f"--target={machine.first}", "--net", "sh", "-ec", words], check=True)
        yield head, other


def possible() -> bool:
    """Whether namespaces can be made here."""
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", "ip link add switch type bridge"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class Cluster:
    """The two machines as a Ray cluster. Runs are started on its head."""

    place: Path
    head: Machine
    other: Machine

    @contextlib.contextmanager
    def training(self, name: str, *arguments: str, code: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """Run the command on the head, from the project's root; inside the block it is under way.

        `code` is executed in its process first, to change the program under test.
        """
        words = ["--config", "quickstart.yaml", *arguments, f"rollout.address={HEAD}:6379"]
        words += [f"output_dir={self.run(name)}"]
        command = self.head.command(sys.executable, "-c", f"{code}\n{COMMAND}", *words)
        with self.output(name).open("a") as output:
            process = subprocess.Popen(command, env=self.head.environment, stdout=output, stderr=output)
        try:
            yield process
        finally:
            if process.poll() is None:
                psutil.Process(process.pid).children()[0].kill()
                process.kill()
            process.wait()

    def run(self, name: str) -> Path:
        return self.place / "runs" / name

    def output(self, name: str) -> Path:
        return self.place / f"{name}.txt"

    def steps(self, name: str) -> int:
        """The number of finished steps."""
        return len(read_metrics(self.run(name))) - 1


@contextlib.contextmanager
def cluster_of(head_cpus: int, other_cpus: int) -> Iterator[Cluster]:
    """A cluster with the given CPUs for workers on each machine."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as path, two_machines(Path(path)) as (head, other):
        head.ray("start", "--head", "--port=6379", f"--num-cpus={head_cpus}", "--num-gpus=0", NO_DASHBOARD)
        other.ray("start", f"--address={HEAD}:6379", f"--num-cpus={other_cpus}")
        yield Cluster(Path(path), head, other)


@contextlib.contextmanager
def pulled(head: Machine) -> Iterator[None]:
    """Inside the block nothing gets from one machine to the other, and neither is informed."""
    head.run("ip", "link", "set", "plug", "down")
    try:
        yield
    finally:
        head.run("ip", "link", "set", "plug", "up")
