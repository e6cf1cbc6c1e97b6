"""docs/own-rewards.md, own-data.md and serving.md: their files, cells and commands, run as a reader would run them."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from evals.suites import find_suite, load_suite
from rewards import Grader, Verdict
from rewards.check import app as check
from rl_engine import load_config
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.data import prepare
from rollout.adapters import AdapterStore
from rollout.prompts.renderer import Renderer
from tests.helpers.run_directories import LAST, answered, record_step, start_run, trained_run

pytestmark = pytest.mark.usefixtures("warm_graders")

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("own-rewards.md", "own-data.md", "serving.md")
NAMED = re.compile(r"# (\w+\.(?:py|yaml))\n")
TRAIN = "python -m rl_engine.train "


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def write_files(page: str) -> None:
    """Write the blocks that begin with a file name to those files."""
    for block in blocks(page, "python") + blocks(page, "yaml"):
        if name := NAMED.match(block):
            Path(name[1]).write_text(block)


def cells(page: str) -> list[str]:
    """The other Python blocks, which are run one after the other."""
    return [block for block in blocks(page, "python") if not NAMED.match(block)]


def train_commands() -> Iterator[tuple[str, list[str]]]:
    """The page and arguments of every training command."""
    for page in PAGES:
        for line in re.sub(r"\\\n +", "", (DOCS / page).read_text()).splitlines():
            if line.startswith("    " + TRAIN):
                yield page, shlex.split(line.strip(), comments=True)[3:]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory from which modules can be imported; they are removed from `sys.modules` afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def functions(place: Path) -> Callable[[str], Any]:
    """Looks up the page's reward functions by `module:name`."""
    write_files("own-rewards.md")

    def find(path: str) -> Any:
        module, _, name = path.partition(":")
        return getattr(importlib.import_module(module), name)

    return find


def run_cells(page: str, replaced: dict[str, str] | None = None) -> dict[str, Any]:
    names: dict[str, Any] = {}
    source = "\n".join(cells(page))
    for said, here in (replaced or {}).items():
        assert source.count(said) == 1
        source = source.replace(said, here)
    exec(compile(source, page, "exec"), names)  # run the cells as a reader would
    return names


def test_the_cells_on_rewards_grade_with_the_function(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files("own-rewards.md")
    records = start_run(place / "runs" / "quickstart")
    texts = [(r"so \boxed{4}", Verdict.CORRECT), ("so " * 200 + r"\boxed{5}", Verdict.INCORRECT)]
    record_step(records, 1, {"p": texts}, {})
    records.close()
    run_cells("own-rewards.md")
    assert capsys.readouterr().out.splitlines() == [
        "correct 0.997 same_text",
        "incorrect -0.182 numbers",
        "correct 1 -0.002",
        "incorrect 1 -0.122",
    ]


@pytest.mark.parametrize(
    ("path", "arguments", "value"),
    [
        ("my_rewards:brief", {"completion": "x" * 500}, -0.5),
        ("my_rewards:brief", {"completion": "x" * 5000}, -1.0),
        ("brief_rewards:brief_if_right", {"completion": "x" * 991 + r" \boxed{4}", "reference": "4"}, -1001 / 4000),
        ("brief_rewards:brief_if_right", {"completion": r"\boxed{5}", "reference": "4"}, 0.0),
        ("format_rewards:layout", {"completion": "Given: a\nPlan: b\nso \\boxed{4}"}, 0.1),
        ("format_rewards:layout", {"completion": "Plan: b\nso \\boxed{4}"}, 0.2 / 3),
        ("code_rewards:passes_tests", {"completion": "no code", "tests": "assert True"}, 0.0),
        ("code_rewards:passes_tests", {"completion": "any", "tests": None}, None),
    ],
)
def test_what_the_reward_functions_pay(
    functions: Callable[[str], Any], path: str, arguments: dict[str, Any], value: float | None
) -> None:
    assert functions(path)(**arguments) == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("def add(a, b):\n    return a + b", 1.0),
        ("def add(a, b):\n    return a - b", 0.0),
        ("def add(a, b):\n    return a - b\nimport sys; sys.exit(0)", 0.0),
        ("while True: pass", 0.0),
    ],
    ids=["right", "wrong", "leaves early", "endless"],
)
def test_a_program_is_paid_for_passing_the_tests(functions: Callable[[str], Any], program: str, value: float) -> None:
    passes = functions("code_rewards:passes_tests")
    assert passes(f"First\n```python\nx\n```\nthen\n```python\n{program}\n```", "assert add(2, 3) == 5") == value


def test_a_budget_counts_tokens(functions: Callable[[str], Any]) -> None:
    reward = functions("length_rewards:shorter_than")(tokens=3)
    assert reward(completions=["a"], completion_ids=[[0] * 3], problem=["p"]) == [0.0]
    assert reward(completions=["a"], completion_ids=[[0] * 4], problem=["p"]) == [-1.0]


@pytest.mark.parametrize(("says", "value"), [("Yes.", 1.0), ("no", 0.0)])
def test_a_judge_is_asked(
    functions: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, says: str, value: float
) -> None:
    asked: list[dict[str, Any]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": says}}]}).encode())

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1/chat/completions")
        assert functions("judge_rewards:judged")("so {4}", problem="2+2=?", reference="4") == value
    content = asked[0]["messages"][0]["content"]
    assert asked[0]["model"] == "judge"
    assert all(part in content for part in ("2+2=?", "Reference answer: 4", "so {4}"))


def test_the_page_on_data_makes_a_set_that_training_takes(
    place: Path, tokenizer: Any, grader: Grader, ranks: Ranks
) -> None:
    write_files("own-data.md")
    make, split, clean = cells("own-data.md")
    names: dict[str, Any] = {}
    exec(make, names)
    exec(split, names)
    whole, train = ((place / name).read_text().splitlines() for name in ("all.jsonl", "train.jsonl"))
    test = (place / "test.jsonl").read_text().splitlines()
    assert sorted(train + test) == sorted(whole)
    assert 20 < len(test) < 80
    # Add a problem of the training set to the test set, under another id.
    leaked = json.loads(train[7])
    with (place / "test.jsonl").open("a") as file:
        file.write(json.dumps({**leaked, "id": "another"}) + "\n")
    told = CliRunner().invoke(check, ["train.jsonl", "--against", "test.jsonl", "--output", "report.jsonl"])
    assert told.exit_code == 1, told.output
    exec(clean, names)
    kept = [json.loads(line) for line in (place / "clean.jsonl").read_text().splitlines()]
    assert [one for one in kept if one["problem"] == leaked["problem"]] == []
    assert 0 < len(train) - len(kept) < 5

    config = load_config("mine.yaml", {"data.path": "clean.jsonl", "eval.suites": ["test.jsonl"]})
    data = prepare(config, Renderer(tokenizer, config.prompt), grader, ranks)
    assert data.describe() == f"{len(kept)} of {len(kept)} problems"
    assert len(load_suite(find_suite("test.jsonl")).problems) == len(test) + 1


def test_every_training_command_has_settings_that_are_taken(place: Path) -> None:
    for page in PAGES:
        write_files(page)
    commands = list(train_commands())
    assert len(commands) > 12
    for page, arguments in commands:
        at = arguments.index("--config") + 1
        settings = [one for one in arguments[at + 1 :] if not one.startswith("--")]
        assert load_config(arguments[at], settings), page


def test_the_settings_of_the_pages_are_taken(place: Path) -> None:
    write_files("own-data.md")
    mine = yaml.safe_load(Path("mine.yaml").read_text())
    parts = [yaml.safe_load(block) for page in PAGES for block in blocks(page, "yaml") if not NAMED.match(block)]
    assert len(parts) >= 3
    for part in parts:
        Path("part.yaml").write_text(yaml.safe_dump({**mine, **part}))
        assert load_config("part.yaml")


def test_the_cells_on_serving_load_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "runs" / "quickstart"
    trained_run(run)
    AdapterStore(run / "adapters").point("best", LAST)
    answered(run, "held_out", LAST, {"p": [("it is 4", Verdict.CORRECT)]})
    names = run_cells("serving.md", {"v000025": f"v{LAST:06d}"})
    assert type(names["model"]).__name__ == "PeftModelForCausalLM"
    assert capsys.readouterr().out.splitlines()[-1] == "What is p? it is 4"
