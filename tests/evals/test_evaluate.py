"""The whole evaluation with a scripted engine: it finds the known success rates."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path

import pytest

from evals.launch.group import Launch
from rewards.records import read_rows
from rollout.engine import InFlight
from tests.helpers.grown import SAID, write_grown
from tests.helpers.scripted_evaluation import (
    ADAPTER_RATE,
    BASE_RATE,
    Counting,
    Scripted,
    measure,
    options_for,
    scripted,
    timeless,
)

pytestmark = pytest.mark.usefixtures("one_grader")


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


def test_a_rank_without_a_batch_starts_its_engine_too(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine is ready only when those of all ranks are; if one rank were left out, the others would wait forever.
    A rank on a machine that lacks the main one's file is refused first."""
    options = options_for(tmp_path, adapter, limit=4, adapters=())

    class Second(Launch):
        def barrier(self) -> None: ...

    monkeypatch.setattr("evals.launch.group.SEEN_WITHIN_S", 0.0)
    with pytest.raises(ValueError, match="--output: rank 1 does not see what rank 0 writes"):
        measure(options, scripted(), Second(1, 2))
    options.output.with_suffix(".partial.jsonl").touch()
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
    rows = [{"id": f"q{i}", "problem": story.format(i), "answer": str(i), "subject": "a|b\n<c>"} for i in range(3)]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with suite.open("a") as file:
        file.write("{broken\n")
    training.write_text(json.dumps(rows[1]) + "\n" + json.dumps({"id": "z", "problem": "other", "answer": "1"}) + "\n")
    options = options_for(tmp_path, adapter, suites=(str(suite),), samples=1, temperature=0.0, train_data=str(training))
    text = measure(options, scripted())
    assert "1 of 2 training problems overlap exam (1 word for word" in text
    (found,) = json.loads(options.output.read_text())["suites"]
    assert found["contamination"]["exact"] == 1
    assert found["minus_base"]["policy-v000007"]["test"] == "exact McNemar test"
    assert "dropped 1 rows: not JSON (for one, exam.jsonl:4)" in text
    # The default length is cut to what the model's context can hold, and that is reported.
    assert "the model's context is 256" in text
    assert found["sampling"]["max_tokens"] < 256
    assert "| a\\|b \\<c> |" in (tmp_path / "out.md").read_text()
