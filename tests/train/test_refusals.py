"""A run that cannot work is refused before anything is loaded, and `--dry-run` refuses it in the same words."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rewards import Grader, RewardConfig, Verdict
from rl_engine.config import Config, load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.run.checks import check_parts
from rl_engine.run.output import ANEW
from rl_engine.sampling.failures import grading_failure
from rl_engine.sft.__main__ import app as sft
from rl_engine.train import assemble as assembling
from rl_engine.train.__main__ import app
from rl_engine.train.assemble import assemble
from rl_engine.train.dry_run import dry_run
from rollout.adapters import AdapterStore
from rollout.models import EMBEDDED_DIR
from tests.helpers import forked
from tests.helpers.answering_engine import UNCHECKED, in_place_of_vllm
from tests.helpers.builders import completion, graded_group, prompt, result
from tests.helpers.families import write_tiny
from tests.helpers.grown import SAID, write_grown
from tests.helpers.peft_adapters import write_peft

pytestmark = pytest.mark.usefixtures("warm_graders")

SMALL = (
    "train.steps=2",
    "train.problems_per_step=4",
    "sampling.n=4",
    "eval.suites=[]",
    "rollout.kv_cache_gib=0.25",
    "log.tensorboard=false",
)
MINE = """
def raises(completion, reference, problem):
    return float(completion.split("=")[7])

def needs_a_mark(completion, reference, problem):
    return 1.0 / completion.count("So the")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the commands, which holds a user's module."""
    (tmp_path / "my_function.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("output_dir=my_function.py/run", ["output_dir: my_function.py/run cannot be made", "is not a directory"]),
        ("output_dir=my_function.py", ["output_dir: my_function.py is not a directory"]),
        ("output_dir=/proc/no/run", ["output_dir: nothing can be written in /proc"]),
        ("log.wandb=sums", ["log.wandb is set, and wandb is not installed: pip install wandb"]),
        ("log.trackio=sums", ["log.trackio is set, and trackio is not installed: pip install trackio"]),
        ("rewards.function=my_function:raises", ["trial call of my_function:raises", "my_function.py", "IndexError"]),
        ("rewards.function=my_function:rises", ["my_function.py has no 'rises'"]),
    ],
)
def test_a_run_and_a_dry_run_refuse_it_in_the_same_words(
    here: Path, monkeypatch: pytest.MonkeyPatch, override: str, messages: list[str]
) -> None:
    for package in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, package, None)
    said = []
    for option in ([], ["--dry-run"]):
        ended = CliRunner().invoke(app, ["--config", "quickstart.yaml", *option, override])
        assert ended.exit_code == 2, ended.output
        said.append(ended.output)
    assert said[0] == said[1]
    assert [message for message in messages if message not in said[0]] == []
    assert "saved" not in said[0]
    assert {path.name for path in here.iterdir()} <= {"my_function.py", "__pycache__"}


@pytest.mark.parametrize("override", ["output_dir=/proc/no/run", "log.wandb=sums"])
def test_supervised_training_refuses_it_as_early(here: Path, monkeypatch: pytest.MonkeyPatch, override: str) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (here / "a.jsonl").write_text(json.dumps({"messages": []}) + "\n")
    ended = CliRunner().invoke(
        sft, ["--config", "sft_jsonl.yaml", "model.name=embedded", "data.path=a.jsonl", override]
    )
    assert ended.exit_code == 2, ended.output
    assert override.partition("=")[0] in ended.output
    assert "torch" not in ended.output


def test_merging_a_whole_model_is_refused_before_loading(here: Path) -> None:
    given = ["--config", "sft_jsonl.yaml", "model.name=embedded", "data.path=a.jsonl", "method=full", "--merge"]
    ended = CliRunner().invoke(sft, given)
    assert (ended.exit_code, "--merge works only with method=lora" in ended.output) == (2, True), ended.output
    assert "torch" not in ended.output


def test_the_trial_is_on_the_first_problem_of_the_runs_own_file(here: Path) -> None:
    """Its reference has a form that only this reward function can read."""
    (here / "my_json.py").write_text(
        "import json\ndef reward(completion, reference, problem):\n"
        "    assert problem == 'one plus one', problem\n    return json.loads(reference)['value'] - 'two'\n"
    )
    row = {"problem": "one plus one", "answer": json.dumps({"value": 2})}
    (here / "mine.jsonl").write_text("not JSON\n" + json.dumps(row) + "\n")
    ended = CliRunner().invoke(
        app,
        [
            "--config",
            "quickstart.yaml",
            "--dry-run",
            "data.source=jsonl",
            "data.path=mine.jsonl",
            "rewards.function=my_json:reward",
        ],
    )
    assert ended.exit_code == 2
    assert "TypeError: unsupported operand type(s) for -: 'int' and 'str'" in ended.output


def refusals_of(config: Config, ranks: Ranks, grader: Grader) -> list[str]:
    """The messages with which a run (before it loads weights) and a dry run refuse the configuration."""
    said = []
    for walk in (
        lambda: assemble(config, ranks, grader, resume=False),
        lambda: dry_run(config, ranks, ANEW),
    ):
        with pytest.raises(ValueError, match=r".+") as refused:
            walk()
        said.append(str(refused.value))
    return said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.start_from=other", "lora.start_from: other is an adapter of 'org/other', and model.name is 'embedded'"),
        ("lora.start_from=nowhere", "lora.start_from: nowhere holds no adapter_config.json"),
        ("lora.start_from=same", "in same is scaled by 4 (rank 2), and here by 32"),
        ("lora.targets=[q_porj]", "q_proj"),
        ("learner.attention=flash_attention_2", "learner.attention is flash_attention_2, which needs CUDA"),
        ("model.name=grown", f"model.name {SAID}"),
        ("model.name=old", "learner.gradient_checkpointing is true, and transformers has no gradient checkpointing"),
    ],
)
def test_what_the_shapes_tell_is_refused_alike_without_weights(
    here: Path,
    make_config: Callable[..., Config],
    ranks: Ranks,
    grader: Grader,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    message: str,
) -> None:
    monkeypatch.setattr(assembling, "Learner", lambda *_: pytest.fail("weights are loaded"))
    settings = {"lora_alpha": 8}
    write_grown(here)
    write_tiny("ctrl", here / "old")
    write_peft(here / "other", base_model_name_or_path="org/other")
    write_peft(here / "same", base_model_name_or_path=str(EMBEDDED_DIR), **settings)
    run, dry = refusals_of(make_config(*SMALL, "learner.gradient_checkpointing=true", override), ranks, grader)
    assert run == dry
    assert message in run


def test_few_problems_and_repeats_are_reported_with_numbers(
    here: Path, make_config: Callable[..., Config], ranks: Ranks, grader: Grader, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"problem": f"{n}+1=?", "answer": n + 1} for n in range(3)] * 4
    (here / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dry_run(make_config(*SMALL, "data.source=jsonl", "data.path=mine.jsonl"), ranks, ANEW)
    output = " ".join(capsys.readouterr().out.split())
    assert "warning: only 3 of 12 problems are different" in output
    assert "a step takes 4 problems, of which 3 can differ: each is sampled 1.3 times in a step" in output


def test_a_function_that_raises_stops_the_run_with_traceback(here: Path) -> None:
    """The function passes the trial call, whose completion contains the words that it looks for."""
    mine = (*SMALL, *UNCHECKED, "rewards.function=my_function:needs_a_mark")
    code, output = forked.train(here, *mine, environment={}, prepare=in_place_of_vllm)
    assert code == 1, output
    assert "error: step 1, version 0: grading failed on 16 of 16 completions" in output
    assert "my_function.py" in output
    assert "ZeroDivisionError" in output
    assert "--resume" not in output
    with gzip.open(here / "runs" / "quickstart" / "rollouts" / "step000001.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert {(row["verdict"], row["scored"], row["advantage"]) for row in rows} == {("error", False, 0.0)}
    assert all("ZeroDivisionError" in row["detail"] and "line 6" in row["detail"] for row in rows)


@pytest.mark.parametrize(
    ("function", "step", "errors", "timeouts", "stops"),
    [
        (None, 1, 1, 0, False),
        (None, 5, 1, 9, False),
        (None, 5, 2, 0, True),
        ("mine:reward", 1, 1, 0, True),
        ("mine:reward", 0, 1, 0, True),
        ("mine:reward", 1, 0, 1, False),
        ("mine:reward", 2, 1, 0, False),
        ("mine:reward", 2, 1, 1, True),
        ("mine:reward", 2, 0, 2, True),
    ],
)
def test_more_than_a_tenth_of_failures_stops_a_run(
    function: str | None, step: int, errors: int, timeouts: int, stops: bool
) -> None:
    """Each case has ten completions. In the first step, a single error of a user's function is enough."""
    verdicts = [*[Verdict.ERROR] * errors, *[Verdict.TIMEOUT] * timeouts, *[Verdict.CORRECT] * (10 - errors - timeouts)]
    group = graded_group(prompt(), [(completion(), result(verdict)) for verdict in verdicts])
    found = grading_failure(RewardConfig(function=function), step, [group])
    assert (found is not None) is stops


def test_a_start_from_a_version_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "best").symlink_to("v000001")
    config = load_config("quickstart.yaml", [f"lora.start_from={tmp_path / 'best'}"])
    with pytest.raises(ConfigError, match=r"^lora.start_from: .*/best points to v000001, which is missing; no other"):
        check_parts(config)


def test_a_start_from_a_run_names_a_version_of_it(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "run" / "adapters")
    store.publish(3, lambda directory: None, {"rank": 1})
    config = load_config("quickstart.yaml", [f"lora.start_from={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match=rf"is a run: give {store.path_of(3)}$"):
        check_parts(config)
