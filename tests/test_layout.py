"""The rules of the tree: who may import whom, what stays light, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("rl_engine", "rewards", "rollout", "evals", "configs")
MAY_IMPORT = {
    "rewards": {"rewards"},
    "rollout": {"rollout"},
    "evals": {"evals", "rewards", "rollout"},
    "rl_engine": set(OURS),
    "configs": set(),
}
HEAVY = {
    "vllm": {"rollout/vllm_engine.py", "rollout/one_adapter.py"},
    "peft": {"rl_engine/policy/lora.py", "rl_engine/policy/lora_linear.py"},
    "trl": {"rl_engine/sft/trainer.py"},
    "ray": {"rollout/pool/ray_pool.py", "rollout/pool/local_cluster.py"},
    "omegaconf": {"rl_engine/config/file.py"},
    "lm_eval": {"evals/forgetting/harness.py"},
}
FILES = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of every module a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_there_are_files_to_check() -> None:
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_package_may_and_stays_short(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert imported(path) & set(OURS) <= MAY_IMPORT[package]
    assert_short(path)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_stays_short(path: Path) -> None:
    assert_short(path)


def assert_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{path}:{node.name} is over 60 lines"


@pytest.mark.parametrize(("dependency", "homes"), HEAVY.items())
def test_a_heavy_dependency_is_imported_at_its_home_alone(dependency: str, homes: set[str]) -> None:
    users = {str(path.relative_to(ROOT)) for path in FILES if dependency in imported(path)}
    assert users == homes


@pytest.mark.parametrize(
    "module",
    [
        "evals.__main__",
        "evals.forgetting.__main__",
        "rewards",
        "rl_engine.config",
        "rl_engine.doctor.__main__",
        "rl_engine.inspect.__main__",
        "rl_engine.plan.__main__",
        "rl_engine.push.__main__",
        "rl_engine.report.__main__",
        "rl_engine.sft.__main__",
        "rl_engine.sweep.__main__",
        "rl_engine.train.__main__",
        "rollout.config",
    ],
)
def test_light_modules_load_neither_torch_nor_vllm(module: str) -> None:
    heavy = (
        "torch",
        "vllm",
        "transformers",
        "deepspeed",
        "sympy",
        "math_verify",
        "datasets",
        "matplotlib",
        "trl",
        "scipy",
    )
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert answer.stdout.strip() == "[]"
