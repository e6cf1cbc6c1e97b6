"""An adapter is prompted as in its own run, wherever the run is, unless told otherwise; any difference is reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from evals.options import EvalOptions
from evals.policies import Policy, named_version
from evals.prepare import prepare_suite
from evals.protocol.training_protocol import agreed, model_overridden, overridden, training_protocol
from evals.suites import ASKED_OF_EMBEDDED, find_suite, generated_by, load_suite
from rl_engine.config import load_config
from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rollout.adapters import MANIFEST, AdapterStore
from rollout.config import DataConfig
from rollout.frames import CHAT_TEMPLATES
from rollout.prompts.arithmetic import split_of
from rollout.types import AdapterRef
from tests.helpers.generated import needs_reasoning_gym
from tests.helpers.peft_adapters import write_peft

FRAME = "Q: {problem}\nA:"
STOP = ["\n\n"]


def write_run(run: Path, text: str) -> AdapterRef:
    """A run directory with one version."""
    ref = AdapterStore(run / "adapters").publish(3, write_peft, {"base_model": "embedded", "rank": 2})
    (run / "config.yaml").write_text(text)
    return ref


def reinforced(*overrides: str) -> str:
    return load_config("quickstart.yaml", overrides).to_yaml()


def options(**given: Any) -> EvalOptions:
    return EvalOptions(model="embedded", suites=("held_out",), output=Path("out.json"), **given)


def pushed(ref: AdapterRef, run: Path) -> Path:
    """The version in the form of a hub repository."""
    folder = run.parent / "downloaded"
    shutil.copytree(ref.path, folder)
    (folder / "run").mkdir()
    shutil.copyfile(run / "config.yaml", folder / "run" / "config.yaml")
    shutil.rmtree(run)
    return folder


@pytest.mark.parametrize("place", ["run", "run/adapters/latest", "run/adapters/v000003", "pushed"])
def test_the_prompt_of_the_run_is_found_wherever_the_adapter_is(tmp_path: Path, tokenizer: Any, place: str) -> None:
    text = reinforced(
        "prompt.template=frame",
        f"prompt.frame={json.dumps(FRAME)}",
        "prompt.instruction=Think.",
        f"sampling.stop={json.dumps(STOP)}",
        "rewards.answer_forms=[answer_is,boxed]",
        "data.arithmetic.wording='What is {expression}?'",
    )
    ref = write_run(tmp_path / "run", text)
    given = str(pushed(ref, tmp_path / "run") if place == "pushed" else tmp_path / place)
    _, meant = named_version(given)
    ref = AdapterRef(name="mine", version=3, path=meant.directory.resolve(), sha256="", rank=2)
    trained = agreed("embedded", [Policy(label="mine", ref=ref)], ["held_out"])
    assert trained is not None
    suite = prepare_suite(options(), find_suite("held_out"), tokenizer, 256, trained)
    problem = suite.prompts[0].problem.text
    assert problem.startswith("What is ")
    assert suite.prompts[0].text == FRAME.replace("{problem}", f"{problem}\nThink.")
    assert list(suite.sampling.stop) == STOP
    assert suite.answer_forms == ("answer_is", "boxed")
    for words in ("config.yaml", "template frame", "'Think.'", "answers as answer_is, boxed"):
        assert words in trained.describe()


def test_what_is_given_wins_and_is_warned_of(tmp_path: Path, tokenizer: Any) -> None:
    ref = write_run(tmp_path / "run", reinforced("prompt.system=Be brief.", "prompt.instruction=Think."))
    trained = training_protocol(ref.path)
    assert trained is not None
    same = trained.asked("auto", None, None)
    assert (same, overridden(trained, same)) == (trained.prompt, [])
    other = trained.asked("plain", None, "")
    assert (other.template, other.system, other.instruction) == ("plain", None, None)
    assert overridden(trained, other) == [
        "prompted differently from training: prompt.instruction was 'Think.' and is None",
        "prompted differently from training: prompt.system was 'Be brief.' and is None",
        "prompted differently from training: prompt.template was 'chat' and is 'plain'",
    ]
    framed = prepare_suite(options(frame=FRAME), find_suite("held_out"), tokenizer, 256, trained)
    assert framed.prompts[0].text.endswith("\nThink.\nA:")


def test_a_supervised_run_brings_its_chat_template(tmp_path: Path) -> None:
    config = read_config(SftConfig, "sft_jsonl.yaml", ["data.path=x.jsonl", "data.chat_template=tulu"])
    trained = training_protocol(write_run(tmp_path / "run", config.to_yaml()).path)
    assert trained is not None
    assert trained.prompt.model_dump() == config.prompt.model_dump()
    assert trained.chat_template == CHAT_TEMPLATES["tulu"]
    assert (trained.generated, trained.answer_forms) == ((), ("boxed",))


def test_where_no_run_is_the_suites_protocol_stands(tmp_path: Path, tokenizer: Any) -> None:
    write_peft(tmp_path / "mine")
    assert training_protocol(tmp_path / "mine") is None
    assert agreed("embedded", [Policy(label="base")], ["held_out"]) is None
    suite = prepare_suite(options(), find_suite("held_out"), tokenizer, 256)
    assert (suite.prompt.template, suite.prompt.instruction, suite.answer_forms) == ("chat", None, ("boxed",))
    trained = training_protocol(write_run(tmp_path / "run", reinforced()).path)
    assert trained is not None
    assert trained.generated == ASKED_OF_EMBEDDED


def test_a_file_is_read_by_the_columns_of_the_run(tmp_path: Path, tokenizer: Any) -> None:
    """Where it has them; what the command line names comes first."""
    file, plain = tmp_path / "mine.jsonl", tmp_path / "plain.jsonl"
    file.write_text('{"id": "1", "ask": "1+1", "key": "2", "other": "3"}\n')
    plain.write_text('{"id": "1", "problem": "1+1", "answer": "2"}\n')
    named = ("data.columns.problem=ask", "data.columns.answer=key")
    ref = write_run(tmp_path / "run", reinforced("data.source=file", f"data.path={file}", *named))

    def answer(path: Path, **given: Any) -> str:
        suite = find_suite(str(path))
        return (
            prepare_suite(options(**given), suite, tokenizer, 9999, training_protocol(ref.path))
            .prompts[0]
            .problem.answer
        )

    assert (answer(file), answer(plain), answer(file, answer="other")) == ("2", "2", "3")


def test_adapters_of_different_prompts_are_not_asked_one_of_them(tmp_path: Path) -> None:
    policies = [
        Policy(label=name, ref=write_run(tmp_path / name, reinforced(f"prompt.instruction={name}")))
        for name in ("one", "two")
    ]
    with pytest.raises(ValueError, match=r"one and two were trained with different prompts.*was 'one' and is 'two'"):
        agreed("embedded", policies, ["gsm8k"])


def test_only_held_out_asks_for_the_problems_of_one_run(tmp_path: Path) -> None:
    """A run on a file that asked `held_out` made its sums from `data.arithmetic`, and so does its evaluation."""
    own = ("data.source=file", "data.path=x.jsonl", "data.arithmetic.largest=9")
    runs = {"sums": reinforced(), "file": reinforced(*own), "alike": reinforced(*own[:2])}
    refs = {name: write_run(tmp_path / name, text) for name, text in runs.items()}
    trained = training_protocol(refs["file"].path)
    assert trained is not None
    assert trained.generated == generated_by(load_config("quickstart.yaml", own).data)
    sums, file, alike = (Policy(label=name, ref=ref) for name, ref in refs.items())
    assert agreed("embedded", [sums, file], ["gsm8k", "mine.jsonl"]) == training_protocol(refs["sums"].path)
    assert agreed("embedded", [sums, alike], ["held_out"]) is not None
    with pytest.raises(ValueError, match=r"sums and file were trained on different generated problems.*'largest': 20"):
        agreed("embedded", [sums, file], ["gsm8k", "held_out"])


def merged(ref: AdapterRef, run: Path) -> Path:
    """A model into which the version was merged, with the records that `merge/weights.py` writes."""
    folder = run.parent / "merged"
    (folder / "run").mkdir(parents=True)
    for file in (ref.path / MANIFEST, run / "config.yaml"):
        shutil.copyfile(file, folder / "run" / file.name)
    return folder


def test_a_merged_model_is_asked_as_its_adapter(tmp_path: Path) -> None:
    ref = write_run(tmp_path / "run", reinforced("prompt.instruction=Think.", f"sampling.stop={json.dumps(STOP)}"))
    model = merged(ref, tmp_path / "run")
    trained = agreed(str(model), [Policy(label="base")], ["held_out"])
    assert trained is not None
    assert (trained.prompt.instruction, list(trained.stop)) == ("Think.", STOP)
    assert trained.describe().startswith(f"asked as in training ({model}/run/config.yaml)")
    # A user's own directory of that name is not a record of ours.
    (model / "run" / MANIFEST).unlink()
    assert agreed(str(model), [Policy(label="base")], ["held_out"]) is None


def test_an_adapter_on_a_merged_model_is_asked_as_before(tmp_path: Path) -> None:
    """It also reports that the model was trained with other prompts."""
    model = merged(write_run(tmp_path / "first", reinforced("prompt.instruction=Think.")), tmp_path / "first")
    policy = Policy(label="mine", ref=write_run(tmp_path / "second", reinforced("prompt.instruction=Be brief.")))
    trained = agreed(str(model), [policy], ["held_out"])
    assert trained is not None
    assert trained.prompt.instruction == "Be brief."
    (line,) = model_overridden(str(model), trained)
    assert line.startswith("--model is prompted like the adapter, not as in its own training: ")
    assert "'Think.' and is 'Be brief.'" in line
    assert model_overridden(str(model), training_protocol(model) or trained) == []
    assert model_overridden("embedded", trained) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is damaged: "),
        ("a: 1\n", "is not the configuration of a run of this version: "),
        (
            yaml.safe_dump({"prompt": {"template": "no"}, "data": {}}),
            "is not the configuration of a run of this version: prompt.template is 'no'; known are ",
        ),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, text: str, words: str) -> None:
    ref = write_run(tmp_path / "run", text)
    with pytest.raises(ValueError, match=rf"^[^\n]*run/config.yaml {words}[^\n]*$"):
        training_protocol(ref.path)


TASK = ("data.source=reasoning_gym", "data.task=chain_sum", "data.task_settings={max_terms: 2}")


@needs_reasoning_gym
def test_an_adapter_of_a_task_is_asked_held_out_problems(tmp_path: Path, tokenizer: Any) -> None:
    """The length limit is that of its run, the task's scorer grades, and the kind of run does not matter."""
    text = load_config("gsm8k.yaml", [*TASK, "eval.suites=held_out", "eval.max_tokens=33"]).to_yaml()
    supervised = read_config(SftConfig, "sft_jsonl.yaml", [*TASK, "data.path=null", "data.limit=9"]).to_yaml()
    for name, written, longest in (("run", text, 33), ("sft", supervised, 72)):
        trained = training_protocol(write_run(tmp_path / name, written).path)
        assert trained is not None
        assert [(task.name, task.given) for task in trained.tasks] == [("chain_sum", {"max_terms": 2})]
        suite = prepare_suite(options(limit=5), find_suite("held_out"), tokenizer, 512, trained)
        assert suite.origin == 'reasoning_gym chain_sum {"max_terms": 2}, held-out part, seed 1'
        assert suite.sampling.max_tokens == longest
        assert [split_of(prompt.problem.text) for prompt in suite.prompts] == ["held_out"] * 5
        assert all(prompt.problem.entry["task"] == "chain_sum" for prompt in suite.prompts)


@needs_reasoning_gym
def test_a_mix_of_generated_sources_is_asked_alike_of_each() -> None:
    gcd = {"source": "reasoning_gym", "task": "gcd"}
    mix = [{"source": "arithmetic"}, gcd, {**gcd, "weight": 3}, {"source": "gsm8k"}]
    asked = generated_by(DataConfig.model_validate({"source": "mix", "mix": mix}))
    problems = load_suite(find_suite("held_out"), limit=9, generated=asked).problems
    assert [problem.subject for problem in problems] == [""] * 5 + ["gcd"] * 4
