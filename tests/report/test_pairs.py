"""Kept answers → what changed between versions and between runs, and what the page says first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from rewards import Verdict
from rl_engine.config import Config
from rl_engine.config.file import read_config
from rl_engine.report.charts import CHARTS, COT_LENGTH, REWARD, accuracy_chart
from rl_engine.report.descriptions import descriptions_of
from rl_engine.report.origins import headline_of, origin_of, settings_of_its_own
from rl_engine.report.page import page_of, read_runs
from rl_engine.report.pairs import EACH, pairs_of
from rl_engine.report.plot import draw_chart
from rl_engine.report.tables import changes_of, conditions_of
from rl_engine.report.warnings import RULES, warnings_of
from rl_engine.run.records import Records
from tests.helpers.reported import embedded_data
from tests.helpers.run_directories import answered, evaluated, publish, record_step, start_run

RIGHT, WRONG = ("4", Verdict.CORRECT), ("5", Verdict.INCORRECT)
TIMES = {"time/step_s": 2.0, "throughput/tokens_per_s": 50.0}


def make_run(run: Path, *versions: str) -> None:
    """Make a run with an evaluation of each version: one letter per problem, a capital where the answer is right."""
    records = start_run(run, "eval.suites=[gsm8k]")
    for version, letters in enumerate(versions):
        avg = sum(letter.isupper() for letter in letters) / len(letters)
        publish(run, version)
        texts = {letter.lower(): [RIGHT if letter.isupper() else WRONG] for letter in letters}
        answered(run, "gsm8k", version, texts)
        record_step(records, version, {}, TIMES | evaluated(run, "gsm8k", version, avg))


def test_the_first_version_stands_beside_the_best(tmp_path: Path) -> None:
    make_run(tmp_path, "abcD", "ABcD", "AbCd")
    (tmp_path / "adapters" / "best").symlink_to("v000001")
    runs = read_runs([tmp_path], 1)
    (pair,) = pairs_of(runs, ["run"])
    assert pair.labels == ("before training", "best, step 1")
    assert pair.gain is not None
    assert (pair.gain.problems, pair.gain.mean) == (4, 0.5)
    assert (pair.gain.newly_right, pair.gain.newly_wrong) == (2, 0)
    low, high = pair.gain.interval
    assert 0 <= low < 0.5 < high <= 1
    found = {one.problem_id: one for one in pair.problems}
    assert found["b"].history == ((0, 0.0), (1, 1.0), (2, 0.0))
    assert found["b"].gain == 1
    headline = headline_of(runs[0], changes_of(runs))
    assert headline is not None
    title, change, gain = headline
    # From the first to the last: no version was selected, so the gain is not optimistic.
    assert (title, change.first["avg"], change.last["avg"]) == ("GSM8K", 0.25, 0.5)
    assert gain is not None
    assert (gain.mean, gain.newly_right, gain.newly_wrong) == (0.25, 2, 1)
    page = page_of(runs)
    assert "25.0 % → 50.0 %" in page
    assert "<b>+25.0 points</b>" in page


def test_scores_that_were_asked_otherwise_are_not_compared(tmp_path: Path) -> None:
    """A resumed run was told to ask fewer problems: neither curve nor gain joins the scores before and after."""
    make_run(tmp_path, "abcd", "ABCd")
    config = read_config(Config, str(tmp_path / "config.yaml"), ["eval.limit=2"])
    records = Records(tmp_path, config)
    records.open(1)
    for version, letters in ((2, "ab"), (3, "aB")):
        publish(tmp_path, version)
        answered(tmp_path, "gsm8k", version, {one.lower(): [RIGHT if one.isupper() else WRONG] for one in letters})
        record_step(records, version, {}, TIMES | evaluated(tmp_path, "gsm8k", version, version / 4 - 0.5))
        path = tmp_path / f"evals/gsm8k-policy-v{version:06d}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "problems": 2}))
    runs = read_runs([tmp_path], 1)
    (change,) = changes_of(runs)
    assert [one["step"] for one in (change.first, change.last, change.best)] == [2, 3, 3]
    headline = headline_of(runs[0], [change])
    assert headline is not None
    assert headline[2] is not None
    assert (headline[2].problems, headline[2].mean) == (2, 0.5)
    (pair,) = pairs_of(runs, ["run"])
    assert pair.labels == ("step 2", "step 3")
    assert {one.history for one in pair.problems} == {((2, 0.0), (3, 0.0)), ((2, 0.0), (3, 1.0))}
    page = page_of(runs)
    assert "curves have a gap there" in page
    assert "Earlier evaluations asked otherwise and are left out" in page
    data = embedded_data(page)
    assert data["runs"][0]["metrics"]["asked"] == [0, 0, 1, 1]
    assert "asked" not in data["keys"]
    figure, axes = plt.subplots()
    draw_chart(axes, accuracy_chart("gsm8k"), {"run": runs[0].lines})
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0, 1], [2, 3]]  # type: ignore[union-attr]
    draw_chart(axes, REWARD, {"run": [{**line, "reward/mean": 1.0} for line in runs[0].lines]})
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 2, 4]  # type: ignore[arg-type]
    plt.close(figure)


def test_the_headline_pairs_the_evaluations_that_it_names(tmp_path: Path) -> None:
    make_run(tmp_path, "abcd", "Abcd", "ABcd")
    (tmp_path / "evals" / "gsm8k-policy-v000000.jsonl.gz").unlink()
    runs = read_runs([tmp_path], 1)
    headline = headline_of(runs[0], changes_of(runs))
    assert headline is not None
    assert headline[1].first["step"] == 0
    assert headline[2] is None


def test_a_file_that_comes_first_is_the_headline(tmp_path: Path) -> None:
    """The configuration has its path, the metrics its stem."""
    records = start_run(tmp_path, "eval.suites=[some/zebra.jsonl,gsm8k]")
    for version in range(2):
        publish(tmp_path, version)
        scores: dict[str, float] = {}
        for suite in ("zebra", "gsm8k"):
            answered(tmp_path, suite, version, {"a": [RIGHT]})
            scores |= evaluated(tmp_path, suite, version, 0.5)
        record_step(records, version, {}, TIMES | scores)
    runs = read_runs([tmp_path], 1)
    headline = headline_of(runs[0], changes_of(runs))
    assert headline is not None
    assert headline[0] == "zebra"
    assert [pair.suite for pair in pairs_of(runs, ["run"])] == ["zebra", "GSM8K"]


def test_runs_are_paired_by_problem_and_text(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "abc", "ABcx")
    make_run(tmp_path / "two", "abc", "aBCy")
    (pair,) = pairs_of(read_runs([tmp_path / "one", tmp_path / "two"], 1), ["one", "two"])
    assert pair.gain is not None
    assert (pair.gain.problems, pair.gain.newly_right, pair.gain.newly_wrong) == (3, 1, 1)
    assert pair.gain.mean == 0
    assert pair.note == ""
    make_run(tmp_path / "other", "uvw", "UvW")
    (pair,) = pairs_of(read_runs([tmp_path / "one", tmp_path / "other"], 1), ["one", "other"])
    assert pair.gain is None
    assert "nothing is paired" in pair.note


def test_runs_that_were_asked_differently_are_not_one_comparison(tmp_path: Path) -> None:
    """The settings in which two evaluations may differ, top_p among them, and a version whose step is not known."""
    for name, extra in (("one", {}), ("two", {"top_p": 0.9})):
        make_run(tmp_path / name, "abc", "ABc")
        path = tmp_path / name / "evals/gsm8k-policy-v000001.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **extra}))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        (tmp_path / name / "metrics.jsonl").write_text(lines[0] + "\n")
    runs = read_runs([tmp_path / "one", tmp_path / "two"], 1)
    (pair,) = pairs_of(runs, ["one", "two"])
    assert "asked differently" in pair.note
    assert pair.labels == ("one, policy-v000001", "two, policy-v000001")
    assert [how for _, how in conditions_of(runs[1])] == [
        "30 problems × 16, temperature 1, top_p 0.9, ≤ 4,096 tokens",
        "30 problems × 16, temperature 1, ≤ 4,096 tokens",
    ]
    (pair,) = pairs_of(runs[:1], ["one"])
    assert {one.history for one in pair.problems} == {((0, 0.0),)}


def test_a_page_holds_some_problems_of_each_kind(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    make_run(tmp_path, letters[:13] + letters[13:].upper(), letters[:13].upper() + letters[13:])
    (pair,) = pairs_of(read_runs([tmp_path], 1), ["run"])
    gains = [one.gain for one in pair.problems]
    assert gains.count(1) >= EACH
    assert gains.count(-1) >= EACH
    assert len(gains) <= 5 * EACH


def test_answers_that_are_not_ours_to_publish_stay_away(tmp_path: Path) -> None:
    make_run(tmp_path, "a", "A")
    (run,) = read_runs([tmp_path], 1)
    assert "What is a?" in page_of([run])
    assert "What is a?" not in page_of([replace(run, shows_answers=False)])


def test_a_damaged_evaluation_is_named_and_left_out(tmp_path: Path) -> None:
    """It used to be reported as a run in which no problem was asked."""
    for name in ("one", "two"):
        make_run(tmp_path / name, "ab", "Ab", "AB")
    first, last = (tmp_path / "two/evals" / f"gsm8k-policy-v00000{version}.jsonl.gz" for version in (0, 2))
    last.write_bytes(last.read_bytes()[:-12])
    runs = read_runs([tmp_path / "one", tmp_path / "two"], 1)
    (pair,) = pairs_of(runs, ["one", "two"])
    assert (pair.labels, pair.note) == (("one, step 2", "two, step 1"), "")
    assert warnings_of(runs[0]) == []
    (line,) = warnings_of(runs[1])
    assert line.startswith(f"{last} cannot be read (")
    assert line.endswith("), and is left out")
    assert page_of(runs).count(str(last)) == 1
    for path in (first, first.with_name(first.name.replace("v000000", "v000001"))):
        path.write_bytes(b"")
        path.write_text("no gzip")
    runs = read_runs([tmp_path / "two"], 1)
    assert pairs_of(runs, ["two"]) == []
    assert len(warnings_of(runs[0])) == 3
    assert "0.0 % → 100.0 %" in page_of(runs)


def test_a_run_of_an_earlier_version_has_no_pairs(tmp_path: Path) -> None:
    """It still has a headline."""
    make_run(tmp_path, "a", "A")
    for path in (tmp_path / "evals").glob("*.gz"):
        path.unlink()
    (tmp_path / "starts.jsonl").unlink()
    runs = read_runs([tmp_path], 1)
    assert pairs_of(runs, ["run"]) == []
    assert "0.0 % → 100.0 %" in page_of(runs)
    assert origin_of(runs[0]) == {"Seed": "0"}


WRONGS = {
    "reward/verdict/error": 0.001,
    "reward/verdict/timeout": 0.02,
    "sampler/kl": 6e-7,
    "sampler/beyond_frac": 6e-4,
    "completion/truncated_frac": 0.2,
    "loss/clip_low_frac": 0.06,
    "loss/clip_high_frac": 0.06,
    "updates/skipped": 1.0,
}


OF_TOKENS = {"sampler/kl_error": 1e-9, "sampler/tokens": 1e6}


@pytest.mark.parametrize(("key", "value"), WRONGS.items())
def test_what_was_wrong_is_reported_first(key: str, value: float, tmp_path: Path) -> None:
    records = start_run(tmp_path)
    record_step(records, 1, {}, {**TIMES, **OF_TOKENS, **dict.fromkeys(WRONGS, 0.0)})
    assert warnings_of(read_runs([tmp_path], 1)[0]) == []
    record_step(records, 2, {}, {**TIMES, **OF_TOKENS, **dict.fromkeys(WRONGS, 0.0), key: value})
    runs = read_runs([tmp_path], 1)
    (sentence,) = warnings_of(runs[0])
    assert "1 step" in sentence
    page = page_of(runs)
    assert "Look at this first" in page
    assert page.index("Look at this first") < page.index('id="charts"')


@pytest.mark.parametrize(
    ("line", "told"),
    [
        # In float32 the mean's limit is 1e-6. Among a hundred tokens, one that is 0.014 apart reaches it by chance.
        ({"sampler/kl": 1e-6, "sampler/kl_error": 1e-6, "sampler/tokens": 100.0}, False),
        ({"sampler/kl": 1e-6, "sampler/kl_error": 1e-8, "sampler/tokens": 100.0}, True),  # all tokens are equally apart
        ({"sampler/kl": 1e-6, "sampler/kl_error": 1e-6, "sampler/tokens": 1e7}, True),
        ({"sampler/beyond_frac": 0.01, "sampler/tokens": 100.0}, False),  # one token
        ({"sampler/beyond_frac": 0.05, "sampler/tokens": 100.0}, True),
        ({"sampler/beyond_frac": 0.001, "sampler/tokens": 1e6}, True),
        # Runs of earlier versions do not record the number of tokens.
        ({"sampler/kl": 9e-7, "sampler/beyond_frac": 0.01}, False),
    ],
)
def test_a_gap_is_judged_as_the_run_judged_it(line: dict[str, float], told: bool, tmp_path: Path) -> None:
    record_step(start_run(tmp_path), 1, {}, TIMES | line)
    assert bool(warnings_of(read_runs([tmp_path], 1)[0])) == told


def test_every_rule_is_tried() -> None:
    assert {rule.key for rule in RULES} == set(WRONGS)


def test_a_run_says_where_it_comes_from_and_what_was_changed(tmp_path: Path) -> None:
    start_run(tmp_path, "seed=7", "lora.rank=4").close()
    (run,) = read_runs([tmp_path], 1)
    origin = origin_of(run)
    assert origin["Seed"] == "7"
    assert {"Began", "Wall time", "Machine", "Versions", "Command"} <= set(origin)
    own = settings_of_its_own(run)
    assert own["seed"] == ("7", "0")
    assert own["lora.rank"][0] == "4"
    assert own["model.name"] == ("embedded", "required")
    assert "lora.init" not in own
    assert "rollout.piece_timeout_s" not in own  # 1800.0 equals 1800
    assert "output_dir" not in own


def test_what_charts_draw_is_explained_by_the_documentation() -> None:
    charts = [accuracy_chart("mine"), REWARD, COT_LENGTH, *CHARTS]
    keys = [series.key for chart in charts for series in chart.series if not series.key.startswith("inside/")]
    assert [key for key in keys if key not in descriptions_of(keys)] == []
    keys = ["eval/mine/tokens_mean_wrong", "reward/term/mine", "time/sync_s", "completion/tokens_max", "ratio/max"]
    assert set(descriptions_of(keys)) == set(keys)
    assert "sampling.max_tokens" in descriptions_of(["completion/truncated_frac"])["completion/truncated_frac"]
