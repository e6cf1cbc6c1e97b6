"""The layout rules of the repository: who may import whom, what stays light, and how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("datafiles", "rewards", "rollout", "evals", "rl_engine", "configs")
# From the ground up: a room imports only from rooms above it in this list. A room is a folder or a single file.
ROOMS = (
    "configs",
    "datafiles",
    "rewards.types",
    "rewards.config",
    "rewards.extraction",
    "rewards.spelling",
    "rewards.reading",
    "rewards.equality",
    "rewards.judge",
    "rewards.function",
    "rewards.workers",
    "rewards.shaping",
    "rewards.grader",
    "rewards",
    "rollout.types",
    "rollout.closeness",
    "rollout.stopping",
    "rollout.loading",
    "rollout.frames",
    "rollout.config",
    "rollout.files",
    "rollout.hub",
    "rollout.adapters",
    "rollout.peft_format",
    "rollout.models",
    "rollout.prompts",
    "rollout.segments",
    "rollout.work_items",
    "rollout.engine",
    "rollout.servable",
    "rollout.vllm",
    "rollout.pool",
    "rollout",
    "evals.launch",
    "evals.command",
    "evals.suites",
    "evals.contamination",
    "evals.scoring",
    "evals.partial_results",
    "evals.policies",
    "evals.protocol",
    "evals.forgetting",
    "evals",
    "rl_engine.config",
    "rl_engine.policy",
    "rl_engine.learner",
    "rl_engine.sampling",
    "rl_engine.run",
    "rl_engine.command",
    "rl_engine.drawing",
    "rl_engine.inspect",
    "rl_engine.plan",
    "rl_engine.report",
    "rl_engine.api",
    "rl_engine.merge",
    "rl_engine.train",
    "rl_engine.sft",
    "rl_engine.doctor",
    "rl_engine.push",
    "rl_engine.sweep",
    "rl_engine",
)
# Which of our own packages each may import. `rewards` and `rollout` know nothing of each other; both read `datafiles`.
MAY_IMPORT = {
    "datafiles": {"datafiles"},
    "rewards": {"rewards", "datafiles"},
    "rollout": {"rollout", "datafiles"},
    "evals": {"evals", "rewards", "rollout", "datafiles"},
    "rl_engine": set(PACKAGES),
    "configs": set(),
}
HEAVY = {
    "vllm": {f"rollout/vllm/{name}.py" for name in ("arguments", "engine", "few_adapters", "patches")},
    "peft": {"rl_engine/policy/lora/adapter.py", "rl_engine/policy/lora/linear.py", "rl_engine/policy/lora/targets.py"},
    "trl": {"rl_engine/sft/trainer.py"},
    "ray": {
        "rollout/pool/environment.py",
        "rollout/pool/ray_pool.py",
        "rollout/pool/cluster.py",
        "rollout/pool/worker_handle.py",
        "rollout/pool/local_cluster.py",
        "rollout/pool/versions.py",
    },
    "omegaconf": {"rl_engine/config/file.py"},
    "lm_eval": {"evals/forgetting/harness.py"},
    "reasoning_gym": {"datafiles/tasks.py"},
    "latex2mathml": {"rl_engine/report/formulas.py"},
}
LIGHT = (
    "evals.__main__",
    "evals.forgetting.__main__",
    "rewards.audit",
    "rewards.check",
    "rl_engine",
    "rl_engine.api.child",
    "rl_engine.api.configuration",
    "rl_engine.api.evaluation",
    "rl_engine.api.run",
    "rl_engine.api.training",
    "rl_engine.config",
    "rl_engine.doctor.__main__",
    "rl_engine.inspect.__main__",
    "rl_engine.merge.__main__",
    "rl_engine.plan.__main__",
    "rl_engine.push.__main__",
    "rl_engine.report.__main__",
    "rl_engine.sft.__main__",
    "rl_engine.sweep.__main__",
    "rl_engine.train.__main__",
    "rollout.config",
)
# Files in a room, including its `__init__.py` and `__main__.py`.
LARGEST_ROOM = 15


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports: at the top, inside functions, or only for type checking."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: {node.lineno}: import by the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def packages_of(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


# Module → the modules of ours that it imports.
GRAPH = {name: {other for other in imports(path) if other in MODULES} - {name} for name, path in MODULES.items()}


def room_of(module: str) -> str:
    """The innermost room of the list that holds the module."""
    while module not in ROOMS:
        module = module.rpartition(".")[0]
    return module


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            at = stack.index(module)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for module in graph:
        if module not in index:
            visit(module)
    return [group for group in found if len(group) > 1]


def upward(graph: dict[str, set[str]], rooms: tuple[str, ...]) -> list[str]:
    """Imports from a room that is higher up."""
    height = {module: rooms.index(room_of(module)) for module in graph}
    return [
        f"{module} imports {other} from above"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if height[other] > height[module]
    ]


def test_there_are_files_to_check() -> None:
    assert len(FILES) > 100
    assert sum(map(len, GRAPH.values())) > 500


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(GRAPH) == []


def test_rooms_import_only_from_rooms_below_them() -> None:
    assert upward(GRAPH, ROOMS) == []


def test_no_command_imports_another() -> None:
    """Code that commands share is in `command.py`; code of one command that others need is in a file of its room."""
    imported = {other for others in GRAPH.values() for other in others}
    assert {name for name in imported if name.endswith(".__main__")} == set()


def test_a_circle_and_an_upward_import_are_seen() -> None:
    """The two tests above can fail."""
    one, other = "rl_engine.policy.lora.adapter", "rl_engine.learner.learner"
    made = {one: {other}, other: {one}}
    assert circles(made) == [sorted((one, other))]
    assert upward(made, ROOMS) == [f"{one} imports {other} from above"]


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES}), ids=module_of)
def test_a_room_is_no_crowd_and_says_what_it_is(room: Path) -> None:
    names = [path.stem for path in room.glob("*.py")]
    assert len(names) <= LARGEST_ROOM
    if room.name != "configs":
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    # `sft/loop.py`, not `sft/sft_loop.py`
    assert [name for name in names if name.startswith(room.name + "_")] == []


def test_a_name_of_a_class_means_one_thing() -> None:
    named: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                named.setdefault(node.name, []).append(module)
    # A private class may have the same name in several files, because only its own file uses it.
    assert {name: homes for name, homes in named.items() if len(homes) > 1 and not name.startswith("_")} == {}


def test_tests_lie_in_folders_named_as_what_they_test() -> None:
    tests = ROOT / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")} - {Path()}
    rooms = {folder for folder in folders for top in (ROOT, ROOT / "rl_engine") if (top / folder).is_dir()}
    assert {str(folder) for folder in folders - rooms} == {"command", "drills", "packaging"}


def test_a_test_has_a_name_that_can_be_read_at_a_glance() -> None:
    """Anything more belongs in the docstring."""
    longest = 60
    files = (ROOT / "tests").rglob("test_*.py")
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    tests = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert [test.name for test in tests if len(test.name) > longest] == []
    for test in tests:
        (ast.get_docstring(test) or "").encode()  # Python 3.13 cannot compile half a surrogate pair in a docstring


def test_the_top_of_rl_engine_holds_rooms() -> None:
    assert {path.name for path in (ROOT / "rl_engine").glob("*.py")} == {"__init__.py", "__main__.py", "command.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_it_may_and_stays_short(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert packages_of(path) & set(PACKAGES) <= MAY_IMPORT[package]
    assert_short(path)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_stays_short(path: Path) -> None:
    assert_short(path)


def assert_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{path}:{node.name} is over 60 lines"


def texts_by_locale(tree: ast.AST) -> list[str]:
    """Calls that open a text file in the encoding of the machine's locale."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, words = node.func.attr, ast.unparse(node)
        # Not files: descriptors, and a run's records, which are opened at a step.
        opens = name == "open" and not words.startswith(("os.", "store.", "run.records."))
        reads = name in ("read_text", "write_text") or (opens and not re.search(r"'[rwa]b'", words))
        if reads and "encoding=" not in words:
            found.append(words)
    return found


def test_text_has_one_encoding_whatever_the_locale() -> None:
    seen = {str(path): texts_by_locale(ast.parse(path.read_text(encoding="utf-8"))) for path in FILES}
    assert {path: calls for path, calls in seen.items() if calls} == {}


@pytest.mark.parametrize(("dependency", "homes"), HEAVY.items())
def test_a_heavy_dependency_is_imported_at_its_home_alone(dependency: str, homes: set[str]) -> None:
    users = {str(path.relative_to(ROOT)) for path in FILES if dependency in packages_of(path)}
    assert users == homes


def test_light_modules_load_neither_torch_nor_vllm() -> None:
    """All are imported by one process, which stops at the first that loads anything heavy."""
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
        "reasoning_gym",
    )
    code = f"""
import importlib, sys
for module in {LIGHT}:
    importlib.import_module(module)
    if found := [name for name in {heavy} if name in sys.modules]:
        sys.exit(f"{{module}} loads {{found}}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
