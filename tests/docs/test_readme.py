"""README.md and the pages it leads to: their examples run, and the things they name exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl_engine.__main__ import COMMANDS
from rl_engine.config import load_config
from rl_engine.plan.lines import first_lines
from rl_engine.policy.base_model import load_meta_model
from rl_engine.policy.lora.adapter import describe_adapter
from rl_engine.policy.lora.targets import coverage_of
from rl_engine.run.console import COLUMNS
from rl_engine.run.records import WRITTEN
from rl_engine.train.__main__ import app
from rl_engine.train.assemble import plan_lines

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
LONGEST = 130
# The example names a model on the hub. The embedded model only knows sums, and no instruction after the problem.
HERE = (
    "model.name=embedded",
    "model.dtype=float32",
    "prompt.instruction=null",
    "sampling.max_tokens=72",
    "data.max_prompt_tokens=40",
)


def block(text: str, language: str) -> str:
    """The page's first example in that language."""
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_readme_is_short_and_names_every_command() -> None:
    assert len(README.splitlines()) <= LONGEST
    for name, (module, _) in COMMANDS.items():
        assert re.search(rf"`python -m {re.escape(module)}[ `]", README), name


def test_the_examples_of_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = block(README, "yaml")
    assert len(example.splitlines()) == 15
    Path("mine.yaml").write_text(example)
    for name, sums in (("train.jsonl", ("1+2", "3+4", "5+9")), ("test.jsonl", ("2+2",))):
        rows = [{"problem": f"{one}=?", "answer": str(sum(map(int, one.split("+"))))} for one in sums]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my_rewards.py").write_text(block(README, "python"))

    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--config", "mine.yaml", "--dry-run", "rewards.function=my_rewards:one_box", *HERE]
    done = CliRunner().invoke(app, arguments)

    assert done.exit_code == 0, done.output
    assert re.search(r"3 of 3 problems", done.output)
    assert re.search(r"suite test +1 problems", done.output)
    assert "dry run: nothing was trained or written" in done.output


def test_the_quickstart_page_explains_what_a_run_shows() -> None:
    titles = {column.title for column in COLUMNS}
    assert titles == set(
        re.findall(r"^\| `(.+?)` \|", QUICKSTART.partition("## The table")[2].partition("##")[0], re.M)
    )
    assert [name for name in WRITTEN if name not in QUICKSTART] == []


def commands_of(page: str) -> list[str]:
    """The training commands that a page shows, each on one line."""
    whole = page.replace("\\\n", " ")
    return [
        " ".join(found.partition("#")[0].split())
        for found in re.findall(r"^ {4}python -m rl_engine\.train (.*)", whole, re.M)
    ]


@pytest.mark.parametrize("command", commands_of(QUICKSTART))
def test_what_the_quickstart_page_says_to_try_is_a_configuration(command: str) -> None:
    words = [word for word in command.split() if not word.startswith("--")]
    load_config(words[0], words[1:])


def test_the_quickstart_page_shows_the_first_lines_of_a_run() -> None:
    """The lines are those that `describe` in rl_engine/train/assemble.py writes, except for the problems, which would
    have to be graded."""
    config = load_config("quickstart.yaml")
    model = load_meta_model(config.model)
    training = describe_adapter(config.lora, coverage_of(model, config.lora))
    for name, text in {"training": training, **plan_lines(config), **first_lines(config, model)}.items():
        assert f"\n    {name:<10}{text}\n" in QUICKSTART
