"""The whole evaluation with a scripted engine: it finds the known success rates, and interruptions leave no trace."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evals.__main__ import app, how_to_continue
from evals.evaluate import evaluate
from evals.launch.group import Launch
from evals.options import EvalOptions
from evals.partial_results import PartialResults, PartialResultsError
from rewards import Grader
from rewards.records import read_rows
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, InFlight
from rollout.files.alone import OccupiedError
from rollout.models import EMBEDDED_DIR
from rollout.types import AdapterRef, Completion, Prompt, RolloutGroup
from tests.helpers.builders import completion
from tests.helpers.grown import SAID, write_grown
from tests.helpers.streaming_engine import Streaming

ALONE = Launch(0, 1)
BASE_RATE, ADAPTER_RATE = 0.3, 0.6


@pytest.fixture(autouse=True)
def _one_grader(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting new grading processes for every evaluation would take most of the time."""
    monkeypatch.setattr("evals.evaluate.Grader.from_config", lambda *_: contextlib.nullcontext(grader))


@dataclass
class Scripted(Streaming):
    """An engine that is right at a known rate, varies by sample, and always answers the same request in the same
    way."""

    rates: dict[str, float]
    breaks_after: int | None = None
    """Raises an interrupt after this many calls."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(adapter, problem id) of every problem that it was given."""
    calls: int = 0
    settings: EngineSettings | None = None

    def start(self, settings: EngineSettings) -> Scripted:
        self.settings = settings
        return self

    def load_adapter(self, ref: AdapterRef) -> None:
        assert ref.key in self.rates

    def close(self) -> None:
        pass

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        if self.calls == self.breaks_after:
            raise KeyboardInterrupt
        self.calls += 1
        key = adapter.key if adapter else "base"
        self.asked += [(key, prompt.problem.id) for prompt in prompts]
        return [
            RolloutGroup(
                prompt=prompt,
                completions=tuple(
                    self.answer(prompt, key, random.Random(f"{key}/{seed}/{i}")) for i in range(sampling.n)
                ),
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def answer(self, prompt: Prompt, key: str, draw: random.Random) -> Completion:
        value = int(prompt.problem.answer) + (draw.random() >= self.rates[key]) * draw.randint(1, 3)
        return completion(f"\\boxed{{{value}}}", tokens=draw.randint(5, 30), adapter=key)


class Unhurried(Scripted):
    """Its completions are graded while it continues to sample."""

    def advance(self) -> list[InFlight]:
        time.sleep(0.2)
        return super().advance()


class Counting(Scripted):
    """Records how many batches are in flight at each turn."""

    def advance(self) -> list[InFlight]:
        self.there = [*self.__dict__.get("there", []), len(self.later)]
        return super().advance()


def options_for(tmp_path: Path, adapter: Path, **changes: Any) -> EvalOptions:
    plain = EvalOptions(
        model="embedded",
        adapters=(str(adapter),),
        suites=("held_out",),
        samples=4,
        limit=60,
        batch=64,
        output=tmp_path / "out.json",
    )
    return replace(plain, **changes)


def scripted(**settings: Any) -> Scripted:
    return Scripted({"base": BASE_RATE, "policy-v000007": ADAPTER_RATE}, **settings)


def measure(options: EvalOptions, engine: Scripted, launch: Launch = ALONE) -> str:
    """Run the command's work and return what it printed."""
    out = io.StringIO()
    evaluate(options, launch, Console(file=out, width=200), engine.start)
    return out.getvalue()


def timeless(path: Path) -> Any:
    """The JSON without the values that depend on the clock."""
    found = json.loads(path.read_text())
    for key in ("when", "seconds"):
        del found[key]
    for suite in found["suites"]:
        for row in suite["rows"]:
            del row["tokens_per_s"]
    return found


def test_known_rates_are_found_within_their_intervals(tmp_path: Path, adapter: Path) -> None:
    engine = scripted()
    text = measure(options_for(tmp_path, adapter, limit=200, records=True), engine)
    (suite,) = json.loads((tmp_path / "out.json").read_text())["suites"]
    base, trained = suite["rows"]
    for row, rate in ((base, BASE_RATE), (trained, ADAPTER_RATE)):
        assert row["interval"][0] < rate < row["interval"][1]
        assert row["interval"][1] - row["interval"][0] < 0.1
        for k in range(1, 5):
            low, high = row["pass_at"][str(k)]["interval"]
            assert low < 1 - (1 - rate) ** k < high
    difference = suite["minus_base"]["policy-v000007"]
    assert difference["interval"][0] < ADAPTER_RATE - BASE_RATE < difference["interval"][1]
    assert difference["p_value"] < 0.001
    assert (trained["adapter"], trained["problems"], trained["samples"]) == ("policy-v000007", 200, 4)
    assert (suite["suite"], suite["sampling"]["temperature"], suite["sampling"]["top_p"]) == ("held_out", 0.6, 0.95)
    # One engine for both, with slots of the smallest rank that fits.
    assert engine.settings is not None
    assert (engine.settings.lora_rank, engine.settings.dtype) == (2, "float32")
    markdown = (tmp_path / "out.md").read_text()
    for words in (f"{100 * trained['avg']:.1f} %", "policy-v000007 − base", "pass@4"):
        assert words in markdown
        assert words in text
    rows = list(read_rows(tmp_path / "out.samples.jsonl.gz", required=("completion", "reference", "verdict")))
    assert len(rows) == 2 * 200 * 4
    assert sum(row["verdict"] == "correct" for row in rows if row["adapter"] == "base") / 800 == base["avg"]
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("at_once", [65, 200, 10**6])
def test_batches_side_by_side_score_what_they_score_alone(
    at_once: int, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches have 64 completions and belong to two policies; two, four or all of them begin before the first is
    done."""
    measure(options_for(tmp_path, adapter, output=tmp_path / "alone.json"), scripted())
    monkeypatch.setattr("evals.evaluate.completions_at_once", lambda _: at_once)
    engine = Counting({"base": BASE_RATE, "policy-v000007": ADAPTER_RATE})
    measure(options_for(tmp_path, adapter), engine)
    assert timeless(tmp_path / "out.json") == timeless(tmp_path / "alone.json")
    assert (max(engine.there), engine.calls) == ({65: 2, 200: 4, 10**6: 8}[at_once], 8)
    rows = json.loads((tmp_path / "out.json").read_text())["suites"][0]["rows"]
    assert all(row["tokens_per_s"] > 0 for row in rows)


def test_each_policy_has_its_share_of_the_time_of_batches(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All batches finish at once, yet neither policy was sampled in no time."""

    class AtOnce(Scripted):
        def advance(self) -> list[InFlight]:
            time.sleep(0.2)
            return [done for _ in list(self.later) for done in super(AtOnce, self).advance()]

    monkeypatch.setattr("evals.evaluate.completions_at_once", lambda _: 10**6)
    measure(options_for(tmp_path, adapter), AtOnce(scripted().rates))
    (suite,) = json.loads((tmp_path / "out.json").read_text())["suites"]
    spent_s = [row["tokens_mean"] * 240 / row["tokens_per_s"] for row in suite["rows"]]
    assert spent_s[0] == pytest.approx(spent_s[1], rel=0.01)
    assert sum(spent_s) >= 0.2


def test_an_interrupted_evaluation_goes_on_from_what_is_kept(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds if its batches were sampled side by side."""
    monkeypatch.setattr("evals.evaluate.completions_at_once", lambda _: 10**6)
    options = options_for(tmp_path, adapter)
    measure(replace(options, output=tmp_path / "whole.json"), scripted())
    with pytest.raises(KeyboardInterrupt):
        measure(options, Unhurried(breaks_after=5, rates=scripted().rates))
    engine = scripted()
    measure(options, engine)
    assert 0 < engine.calls < 8
    assert timeless(tmp_path / "out.json") == timeless(tmp_path / "whole.json")


@pytest.mark.parametrize("calls", [1, 5])
def test_an_interrupted_evaluation_ends_like_one_that_was_not(calls: int, tmp_path: Path, adapter: Path) -> None:
    """60 problems make four batches of at most sixteen for each of the two policies."""
    whole, engine = scripted(), scripted(breaks_after=calls)
    measure(options_for(tmp_path, adapter, output=tmp_path / "whole.json"), whole)
    options = options_for(tmp_path, adapter)
    with pytest.raises(KeyboardInterrupt):
        measure(options, engine)
    assert not options.output.exists()
    # A crash in the middle of a line.
    with (tmp_path / "out.partial.jsonl").open("a") as file:
        file.write('{"suite": "held_out", "contender": "ba')
    engine.breaks_after = None
    text = measure(options, engine)
    assert f"{16 * calls if calls < 4 else 76} of 120 problems are finished already" in text
    assert (engine.asked, engine.calls) == (whole.asked, whole.calls)
    assert whole.calls == 8
    assert timeless(options.output) == timeless(tmp_path / "whole.json")


def test_an_evaluation_goes_on_with_its_own_settings_alone(tmp_path: Path, adapter: Path) -> None:
    options = options_for(tmp_path, adapter)
    with pytest.raises(KeyboardInterrupt):
        measure(options, scripted(breaks_after=2))
    with pytest.raises(PartialResultsError, match=r"seed was 0 and is 1.*--overwrite"):
        measure(replace(options, seed=1), scripted())
    with pytest.raises(PartialResultsError, match=r"suites.held_out.sampling.temperature was 0.6 and is 1.0"):
        measure(replace(options, temperature=1.0), scripted())
    fresh = scripted()
    measure(replace(options, seed=1, overwrite=True), fresh)
    assert len(fresh.asked) == 120
    with pytest.raises(ValueError, match="already exists"):
        measure(options, scripted())


def test_an_evaluation_that_replaces_one_goes_on_too(tmp_path: Path, adapter: Path) -> None:
    """The command with `--overwrite` used to start over each time, and without it an interrupted evaluation was
    refused."""
    options = options_for(tmp_path, adapter)
    measure(options, scripted())
    anew = replace(options, seed=1, overwrite=True)
    assert how_to_continue(anew) == "run the same command to continue"
    with pytest.raises(KeyboardInterrupt):
        measure(anew, scripted(breaks_after=5))
    assert json.loads(options.output.read_text())["settings"]["seed"] == 0
    assert how_to_continue(anew) == "run the same command without --overwrite to continue"
    assert f"replaces {options.output}" in measure(replace(anew, overwrite=False), rest := scripted())
    assert rest.calls == 3
    assert json.loads(options.output.read_text())["settings"]["seed"] == 1


def test_two_processes_do_not_finish_one_evaluation(tmp_path: Path, adapter: Path) -> None:
    """The first one to finish used to remove the other's partial results."""
    options = options_for(tmp_path, adapter)
    with closing(PartialResults(options.output, {"seed": 0})) as other:
        other.begin(overwrite=False)
        for overwrite in (False, True):
            with pytest.raises(OccupiedError, match=r"another process is at work on .*out\.json"):
                measure(replace(options, overwrite=overwrite), scripted())
    measure(replace(options, overwrite=True), scripted())
    assert not [*tmp_path.glob("out.partial*")]


def test_of_two_processes_that_begin_at_once_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither used to find results of the other, and both wrote."""
    one, other = (PartialResults(tmp_path / "out.json", {"seed": 0}) for _ in range(2))

    def written_meanwhile(*_: Any) -> None:
        monkeypatch.undo()
        with pytest.raises(OccupiedError, match="another process is at work"):
            other.begin(overwrite=False)

    monkeypatch.setattr("evals.partial_results.write_synced", written_meanwhile)
    with closing(one):
        one.begin(overwrite=False)
    assert not [*tmp_path.iterdir()]


def test_an_evaluation_goes_on_with_the_same_weights_alone(tmp_path: Path, adapter: Path) -> None:
    """A name such as `adapters/latest` may be a different model an hour later."""
    model = tmp_path / "embedded"
    shutil.copytree(EMBEDDED_DIR, model)
    options = options_for(tmp_path, adapter, model=str(model), adapters=())
    with pytest.raises(KeyboardInterrupt):
        measure(options, scripted(breaks_after=2))
    (weights,) = model.glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(PartialResultsError, match=r"model\.weights was"):
        measure(options, scripted())


def test_a_rank_without_a_batch_starts_its_engine_too(tmp_path: Path, adapter: Path) -> None:
    """An engine is ready only when those of all ranks are; if one rank were left out, the others would wait forever."""
    options = options_for(tmp_path, adapter, limit=4, adapters=())

    class Second(Launch):
        def barrier(self) -> None: ...

    idle = scripted()
    measure(options, idle, Second(1, 2))
    assert idle.settings is not None
    assert idle.asked == []


def test_no_prompt_has_a_token_without_an_embedding(tmp_path: Path, adapter: Path) -> None:
    options = options_for(tmp_path, adapter, model=str(write_grown(tmp_path)), adapters=())
    with pytest.raises(ValueError, match=re.escape(SAID)):
        measure(options, scripted())


def test_several_processes_do_not_share_models(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(ValueError, match="--tensor-parallel-size is 2 with 2 processes"):
        measure(options_for(tmp_path, adapter, tensor_parallel_size=2), scripted(), Launch(0, 2))


def test_nothing_is_started_when_all_is_finished(tmp_path: Path, adapter: Path) -> None:
    """The evaluation was interrupted after the last batch, before the report."""
    options, engine = options_for(tmp_path, adapter), scripted()
    measure(replace(options, output=tmp_path / "first.json"), engine)
    partial = PartialResults(options.output, {})
    with pytest.raises(KeyboardInterrupt):
        measure(options, scripted(breaks_after=7))
    rest = scripted()
    measure(options, rest)
    assert {problem for _, problem in rest.asked} < {problem for _, problem in engine.asked}
    assert not partial.path.exists()


def test_two_ranks_deal_the_batches_and_one_reports(tmp_path: Path, adapter: Path) -> None:
    measure(options_for(tmp_path, adapter, output=tmp_path / "one.json"), alone := scripted())
    options, engines, barriers = options_for(tmp_path, adapter), (scripted(), scripted()), itertools.count(1)

    class Turns(Launch):
        """The second rank does its share while the main one waits for it to read the partial results."""

        def barrier(self) -> None:
            if next(barriers) == 2:
                measure(options, engines[1], NoWait(1, 2))

    class NoWait(Launch):
        def barrier(self) -> None:
            pass

    measure(options, engines[0], Turns(0, 2))
    assert sorted(engines[0].asked + engines[1].asked) == sorted(alone.asked)
    assert (engines[0].calls, engines[1].calls) == (4, 4)
    assert timeless(options.output) == timeless(tmp_path / "one.json")


def test_overlap_with_training_problems_is_printed_and_kept(tmp_path: Path, adapter: Path) -> None:
    suite, training = tmp_path / "exam.jsonl", tmp_path / "training.jsonl"
    story = "A farmer has {} cows and buys seven more at the market before selling four of them"
    rows = [{"id": f"q{i}", "problem": story.format(i), "answer": str(i), "subject": "a|b"} for i in range(3)]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with suite.open("a") as file:
        file.write("{broken\n")
    training.write_text(json.dumps(rows[1]) + "\n" + json.dumps({"id": "z", "problem": "other", "answer": "1"}) + "\n")
    options = options_for(tmp_path, adapter, suites=(str(suite),), samples=1, temperature=0.0, train_data=str(training))
    text = measure(options, scripted())
    assert "1 of 2 training problems overlap exam (1 word for word" in text
    (found,) = json.loads(options.output.read_text())["suites"]
    assert found["contamination"]["exact"] == 1
    assert found["minus_base"]["policy-v000007"]["test"] == "McNemar, exact"
    assert "dropped 1 rows: not JSON (for one, exam.jsonl:4)" in text
    # The default length is cut to what the model's context can hold, and that is reported.
    assert "the model's context is 256" in text
    assert found["sampling"]["max_tokens"] < 256
    assert "a\\|b" in (tmp_path / "out.md").read_text()


def test_asked_to_stop_the_command_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked to stop in the middle of a batch that takes a minute; the same command then continues."""
    engine, handlers = scripted(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    generate = engine.generate

    def slow(*arguments: Any) -> list[RolloutGroup]:
        if engine.calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return generate(*arguments)

    monkeypatch.setattr(engine, "generate", slow)
    monkeypatch.setattr("evals.__main__.start_vllm", engine.start)
    output = tmp_path / "out.json"
    command = ["--model", "embedded", "--suite", "held_out", "--limit", "60", "--batch", "16", "--output", str(output)]
    start = time.monotonic()
    answer = CliRunner().invoke(app, command)
    assert (answer.exit_code, time.monotonic() - start < 40) == (143, True)
    assert "stopped; run the same command to continue" in answer.stderr
    assert len((tmp_path / "out.partial.jsonl").read_text().splitlines()) == 1 + 2 * 16
    monkeypatch.setattr(engine, "generate", generate)
    answer = CliRunner().invoke(app, command)
    assert (answer.exit_code, len(engine.asked), output.is_file()) == (0, 60, True)
    assert handlers == {number: signal.getsignal(number) for number in handlers}
