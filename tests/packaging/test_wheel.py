"""`pip install .` installs everything a command needs, on every supported Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from rl_engine.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGES = ("configs", "datafiles", "evals", "rewards", "rl_engine", "rollout")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEWER = ("3.12", "3.13")


def tracked(*paths: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split() if (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the contents of the built wheel, and nothing else of the project."""
    place = tmp_path_factory.mktemp("wheel")
    # Build from a copy, since a build leaves its scratch files in the source tree.
    for path in tracked("pyproject.toml", "README.md", "LICENSE", *PACKAGES):
        (place / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (place / "source" / path).write_bytes((ROOT / path).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(place)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(place / "source")], check=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


def run(directory: Path, *words: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a directory that is not the project's."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, *words], cwd=directory, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_every_file_of_the_packages(installed: Path) -> None:
    assert [path for path in tracked(*PACKAGES) if not (installed / path).is_file()] == []


def test_a_command_of_the_wheel_runs_from_another_directory(installed: Path, tmp_path: Path) -> None:
    code = "import rl_engine, rewards; print(rl_engine.__file__, rewards.__file__)"
    found = run(tmp_path, "-c", code, path=installed)
    assert all(path.startswith(str(installed)) for path in found.stdout.split())
    planned = run(tmp_path, "-m", "rl_engine", "plan", "--config", "quickstart.yaml", path=installed)
    assert planned.returncode == 0, planned.stderr
    assert "embedded, float32, method lora" in planned.stdout


@pytest.mark.parametrize(
    ("theirs", "command"),
    [
        ("rewards.py", ("-m", "rl_engine.train")),
        ("rewards.py", ("-m", "evals")),
        ("evals/__init__.py", ("-m", "rl_engine")),
        ("rollout.py", ("-c", "import rl_engine")),
        ("tokenizers.py", ("-m", "rl_engine.train")),
        ("datafiles.py", ("-m", "rl_engine.report")),
        ("datafiles.py", ("-m", "evals.forgetting")),
        ("datafiles.py", ("-m", "rewards.check")),
    ],
)
def test_a_file_in_the_place_of_a_package_is_named(theirs: str, command: tuple[str, ...], tmp_path: Path) -> None:
    """Python searches the current directory first, and used to say that one of our packages "is not a package"."""
    (tmp_path / "configs").mkdir()  # a directory without Python files shadows nothing
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).touch()
    answer = run(tmp_path, *command)
    name = Path(theirs).parts[0].removesuffix(".py")
    what = "the library" if name == "tokenizers" else "rl_engine's own package"
    said = f"{tmp_path / theirs} shadows {what} {name}: rename it"
    if command[0] == "-m":
        assert (answer.returncode, len(answer.stderr.splitlines())) == (2, 1)
    assert answer.stderr.splitlines()[-1].partition(": ")[2].startswith(said)


def test_the_script_is_declared(installed: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "rl-engine = rl_engine.__main__:main" in entry_points.read_text()


# One process asks every command for its help: a process each takes ten times as long.
HELP_OF_ALL = """
import contextlib, io, json, sys
from rl_engine.__main__ import COMMANDS, main

answers = {}
for name in COMMANDS:
    sys.argv, told = ["rl-engine", name, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            main()
    except SystemExit as ended:
        answers[name] = (ended.code, told.getvalue())
print(json.dumps(answers))
"""


def test_every_command_is_listed_and_answers(tmp_path: Path) -> None:
    listed = run(tmp_path, "-m", "rl_engine")
    assert listed.returncode == 0
    asked = run(tmp_path, "-c", HELP_OF_ALL)
    assert asked.returncode == 0, asked.stderr
    answers = json.loads(asked.stdout)
    for name, (module, _) in COMMANDS.items():
        assert f"{name} " in listed.stdout
        assert f"python -m {module}" in listed.stdout
        code, told = answers[name]
        assert code == 0, told
        assert f"python -m {module}" in told
        assert "--help" in told
    wrong = run(tmp_path, "-m", "rl_engine", "trian")
    assert (wrong.returncode, wrong.stderr.strip()) == (2, "error: there is no command 'trian'; did you mean train?")


@pytest.mark.parametrize("python", NEWER)
def test_newer_pythons_are_served_by_the_same_lock(python: str) -> None:
    """Each installed package allows that Python, and all its requirements there are in the lock at an allowed
    version."""
    assert python in SpecifierSet(PROJECT["requires-python"])
    environment = {"python_version": python, "python_full_version": f"{python}.1", "extra": ""}
    lock = {}
    of_this_machine = "cpu.txt" if version("torch").endswith("+cpu") else "cuda.txt"
    for line in (ROOT / "requirements" / of_this_machine).read_text().splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            lock[canonicalize_name(requirement.name)] = specifier.version
    # Needed only for images and audio, or for GPUs: left out on purpose (pyproject.toml, requirements/lock.sh).
    left_out = {"torchvision", "torchaudio", "torchcodec", "triton"}
    problems = []
    for distribution in distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name not in lock:
            continue  # a tool used by the tests, or the project itself
        if python + ".1" not in SpecifierSet(distribution.metadata["Requires-Python"] or ""):
            problems.append(f"{name} does not allow Python {python}")
        for text in distribution.requires or ():
            wanted = Requirement(text)
            if wanted.marker is not None and not wanted.marker.evaluate(environment):
                continue
            wanted_name = canonicalize_name(wanted.name)
            if wanted_name in left_out:
                continue
            if wanted_name not in lock:
                problems.append(f"{name} asks for {wanted}, which the lock lacks")
            elif (
                not wanted.specifier.contains(lock[wanted_name].partition("+")[0], prereleases=True)
                and "+cpu" not in text
            ):
                problems.append(f"{name} asks for {wanted}, and the lock has {lock[wanted_name]}")
    assert problems == []
