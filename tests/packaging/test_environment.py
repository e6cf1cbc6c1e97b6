"""`make` takes a Python that works, or says in a line why none does; it never installs into another than was meant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKS = f"{sys.version_info[0]}.{sys.version_info[1]}.9"
OTHER = "3.12" if sys.version_info[1] != 12 else "3.13"


def a_python(place: Path, version: str = WORKS, lacks: str = "") -> Path:
    """A stand-in that runs short programs as a Python of this version, and whose environments have such Pythons."""
    program = place.with_name(place.name + ".py")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"#!/bin/sh\nexec '{sys.executable}' -S '{program}' \"$0\" \"$@\"\n", encoding="utf-8")
    place.chmod(0o755)
    program.write_text(
        f"""
import pathlib, shutil, sys
this, option, what, *more = sys.argv[1:]
if option == "-c":
    sys.version_info, sys.version = (*map(int, "{version}".split(".")),), "{version} (main)"
    sys.modules |= dict.fromkeys(("bz2", "ctypes", "ensurepip", "lzma", "pip", "ssl", "venv"), sys)
    sys.modules |= dict.fromkeys({lacks!r}.split())
    exec(what)
elif what == "venv":
    pathlib.Path(*more, "bin").mkdir(parents=True)
    shutil.copy(this, pathlib.Path(*more, "bin", "python"))
elif what == "ensurepip":
    pathlib.Path(this).with_name("ensured").touch()
    sys.exit("ensurepip" in {lacks!r})
""",
        encoding="utf-8",
    )
    return place


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A directory for the path, without any Python."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("sh", "sed", "tail"):
        (place / name).symlink_to(str(shutil.which(name)))
    return place


def environment(bare: Path, *given: str) -> tuple[int, list[str]]:
    """Exit code and lines said on standard error, of the script in a fresh directory."""
    script = ROOT / "requirements" / "environment.sh"
    done = subprocess.run(
        [script, ".venv", *given],
        cwd=bare.parent,
        env={"PATH": str(bare), "HOME": str(bare.parent)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def version_in(place: Path) -> str:
    asked = subprocess.run(
        [place / ".venv" / "bin" / "python", "-c", "import sys; print(sys.version)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return asked.stdout.split()[0]


def test_the_newest_that_serves_is_taken(bare: Path) -> None:
    shim = bare / "python3.13"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2; exit 127\n", encoding="utf-8")
    shim.chmod(0o755)
    a_python(bare / "python3.12", "3.12.3", lacks="ensurepip")
    code, said = environment(bare)
    assert (code, said[0]) == (
        2,
        "rl_engine needs CPython 3.11, 3.12 or 3.13 with venv, and none was found that serves:",
    )
    assert said[1] == "  python3.13: pyenv: python3.13: command not found"
    assert said[2].startswith("  python3.12: import of ensurepip halted")
    a_python(bare / "python3.11", "3.11.2")
    assert environment(bare) == (0, [])
    assert version_in(bare.parent) == "3.11.2"
    assert environment(bare) == (0, [])  # it stands now


def test_python3_serves_where_no_other_name_is_there(bare: Path) -> None:
    a_python(bare / "python3", "3.12.9")
    assert environment(bare) == (0, [])
    assert version_in(bare.parent) == "3.12.9"


@pytest.mark.parametrize(
    ("version", "lacks", "reason"),
    [
        ("3.10.13", "", "it is Python 3.10.13"),
        ("3.14.0", "", "it is Python 3.14.0"),
        (WORKS, "lzma", "lzma"),
    ],
)
def test_a_given_python_that_does_not_serve_leaves_nothing(version: str, lacks: str, reason: str, bare: Path) -> None:
    """It used to make the environment, into which pip could then not install, with this Python or another."""
    given = a_python(bare.parent / "their" / "python", version, lacks)
    code, said = environment(bare, str(given))
    assert code == 2
    assert said[1].startswith(f"  {given}: ")
    assert reason in said[1]
    assert not (bare.parent / ".venv").exists()


@pytest.mark.parametrize("given", ["~/my tools/python", "{home}/my tools/python"])
def test_the_given_path_may_have_spaces_and_a_tilde(given: str, bare: Path) -> None:
    a_python(bare.parent / "my tools" / "python")
    assert environment(bare, given.format(home=bare.parent)) == (0, [])
    assert version_in(bare.parent) == WORKS


def test_no_other_environment_is_used_than_was_meant(bare: Path) -> None:
    a_python(bare.parent / ".venv" / "bin" / "python", "3.10.2")
    advice = "  make clean  removes .venv"
    assert environment(bare) == (2, [f".venv has Python 3.10, and rl_engine needs 3.11, 3.12 or 3.13:{advice}"])
    a_python(bare.parent / ".venv" / "bin" / "python")
    given = str(a_python(bare / "other", f"{OTHER}.1"))
    stands = WORKS.rpartition(".")[0]
    said = f".venv has Python {stands}, and PYTHON={given} is Python {OTHER}:{advice}"
    assert environment(bare, given) == (2, [said])
    assert environment(bare) == (0, [])


def test_an_environment_whose_python_is_gone_is_said_to_be(bare: Path) -> None:
    """`python -m venv` would end in a traceback there, and the files of an earlier Python would stay."""
    python = bare.parent / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/gone/python3.12")
    code, said = environment(bare)
    assert code == 2
    assert said == [".venv/bin/python does not run:  make clean  removes .venv, to be made again"]


@pytest.mark.parametrize(
    ("lacks", "answer"), [("pip", []), ("pip ensurepip", [".venv has no pip:  make clean  removes .venv"])]
)
def test_an_environment_without_pip_gets_it(lacks: str, answer: list[str], bare: Path) -> None:
    """As uv makes them."""
    python = a_python(bare.parent / ".venv" / "bin" / "python", lacks=lacks)
    assert environment(bare) == (2 if answer else 0, answer)
    assert python.with_name("ensured").exists()


def test_make_asks_even_if_everything_is_installed(bare: Path) -> None:
    """With `PYTHON=…` it used to test an environment of another Python without a word."""
    place = bare.parent
    shutil.copy(ROOT / "Makefile", place)
    (place / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "environment.sh", place / "requirements")
    (place / "requirements" / "cpu.txt").write_text("torch==1\n", encoding="utf-8")
    a_python(place / ".venv" / "bin" / "python")
    (place / ".venv" / "engine").touch()
    given = a_python(place / "my tools" / "python", f"{OTHER}.1")
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON")}
    done = subprocess.run(
        ["make", "DEVICE=cpu", f"PYTHON={given}", ".venv/engine"],
        cwd=place,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"and PYTHON={given} is Python {OTHER}" in done.stderr
