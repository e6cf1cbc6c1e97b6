"""What may change when a run is resumed, what is recorded about it, and what makes it another run."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml

from rl_engine.config import Config, load_config
from rl_engine.config.fields import fields
from rl_engine.config.file import ConfigError, read_config
from rl_engine.config.resuming import TABLES, rules_of
from rl_engine.config.sft import SftConfig
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.card import settle_rate
from rl_engine.run.checkpoint import Checkpoints, RunState, newest_on_all
from rl_engine.run.checks import check_place
from rl_engine.run.console import RunConsole
from rl_engine.run.output import Beginning, check_output, dry_output
from rl_engine.run.records import Records, asked_alike, read_metrics
from rl_engine.run.resumption import (
    RESUMED,
    check_length,
    check_resumable,
    config_hash,
    planned_length,
    problems_digest,
)
from tests.helpers.made_run import config_in

Problems = list[tuple[tuple[int, ...], str]]
SFT = ("embedded.yaml", "model.name=embedded")


def sft_in(run: Path, *overrides: str) -> SftConfig:
    return read_config(SftConfig, SFT[0], [SFT[1], f"output_dir={run}", "log.tensorboard=false", *overrides])


def begun(run: Path, config: Config | SftConfig, steps: int = 0, *, saved: bool = True) -> Records:
    """A run that has recorded `steps` steps after step 0, and has a checkpoint's directory if `saved`."""
    (run / "checkpoints" / "step000001").mkdir(parents=True, exist_ok=True)
    if not saved:
        (run / "checkpoints" / "step000001").rmdir()
    records = Records(run, config)
    records.open(-1)
    for step in range(steps + 1):
        records.metrics({"step": step})
    return records


@pytest.mark.parametrize("schema", TABLES)
def test_every_key_stands_under_one_rule(schema: Any) -> None:
    keys = [key for key, _ in fields(schema)]
    assert {key: len(rules_of(TABLES[schema], key)) for key in keys} == dict.fromkeys(keys, 1)
    entries = [entry for entries in TABLES[schema].values() for entry in entries]
    names = {".".join(parts[: depth + 1]) for parts in (key.split(".") for key in keys) for depth in range(len(parts))}
    assert set(entries) <= names
    assert len(set(entries)) == len(entries)


def test_the_hash_covers_what_the_numbers_depend_on() -> None:
    plain = config_hash(load_config("quickstart.yaml"), "a" * 64)
    for override in ("train.steps=7", "output_dir=elsewhere", "checkpoint.every=3", "rollout.max_kl=1"):
        assert config_hash(load_config("quickstart.yaml", [override]), "a" * 64) == plain
    here, there = (load_config("quickstart.yaml", ["data.source=jsonl", f"data.path={path}"]) for path in "xy")
    assert config_hash(here, "a" * 64) == config_hash(there, "a" * 64)
    for override in ("seed=1", "lora.rank=2", "train.problems_per_step=8", "rewards.format_weight=0.5"):
        assert config_hash(load_config("quickstart.yaml", [override]), "a" * 64) != plain
    assert config_hash(load_config("quickstart.yaml"), "b" * 64) != plain


@pytest.mark.parametrize(
    "override",
    [
        "rollout.max_kl=0.5",
        "rollout.max_logprob_gap=3",
        "rollout.sleep=false",
        "rewards.workers=1",
        "rewards.timeout_s=9",
        "rewards.memory_mib=2048",
        "train.steps=30",
        "eval.every=3",
        "checkpoint.keep=5",
        "log.trackio=mine",
    ],
)
def test_what_no_number_depends_on_may_change_and_is_noted(override: str, tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path), steps=1)
    changed = config_in(tmp_path, override)
    key = override.partition("=")[0]
    (told,) = check_output(changed, resume=True)
    assert f"noted in {RESUMED}: {key} was " in told
    Records(tmp_path, changed.model_copy(update={"log": config_in(tmp_path).log})).open(1)
    if not key.startswith("log"):
        (noted,) = [json.loads(line) for line in (tmp_path / RESUMED).read_text().splitlines()]
        assert (noted["step"], [*noted["changed"]]) == (1, [key])
        assert check_output(changed, resume=True) == []


@pytest.mark.parametrize(
    "override",
    [
        "rollout.max_num_seqs=64",
        "rollout.kv_cache_gib=0.5",
        "learner.tokens_per_microbatch=512",
        "learner.zero_stage=1",
        "learner.attention=eager",
        "learner.gradient_checkpointing=true",
    ],
)
def test_what_rounds_otherwise_may_change_and_is_reported(override: str, tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path), steps=1)
    _, told = check_output(config_in(tmp_path, override), resume=True)
    assert told.startswith(f"{override.partition('=')[0]}: from here on the run equals an uninterrupted one")


def test_scores_count_together_while_the_suites_are_asked_alike(tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path), 4)
    assert [line["step"] for line in asked_alike(tmp_path)] == [0, 1, 2, 3, 4]
    resumptions = [
        (2, "eval.limit=9", 2),
        (4, "eval.limit=9", 2),
        (4, "eval.temperature=1", 4),
        (3, "eval.temperature=1", 3),
    ]
    for step, override, since in resumptions:
        records = Records(tmp_path, config_in(tmp_path, override))
        records.open(step)
        for later in range(step + 1, 6):
            records.metrics({"step": later})
        assert [line["step"] for line in asked_alike(tmp_path)] == [*range(since + 1, 6)]
    Records(tmp_path, config_in(tmp_path, "eval.limit=9")).open(5)
    assert asked_alike(tmp_path) == [{"step": 3}]  # it is asked again as it was then
    assert asked_alike(tmp_path / "none") == []


def test_scores_of_a_start_before_a_key_was_there_count(tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path), 2)
    starts = (tmp_path / "starts.jsonl").read_text()
    assert starts.count('"min_p": 0.0, ') == 2  # of sampling and of eval
    (tmp_path / "starts.jsonl").write_text(starts.replace('"min_p": 0.0, ', ""))
    Records(tmp_path, config_in(tmp_path)).open(2)
    assert [line["step"] for line in asked_alike(tmp_path)] == [0, 1, 2]


def test_a_score_counts_as_the_process_asked_that_recorded_it(tmp_path: Path) -> None:
    """A run stopped in the evaluation after its last step makes it when it is resumed, with the new settings."""
    begun(tmp_path, config_in(tmp_path), 3)
    records = Records(tmp_path, config_in(tmp_path, "eval.limit=9"))
    records.open(4)
    records.metrics({"step": 4})
    assert asked_alike(tmp_path) == [{"step": 4}]


def test_a_rate_that_depends_on_length_keeps_a_run_its_length(tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path, "optim.schedule=cosine"), steps=1)
    longer = config_in(tmp_path, "optim.schedule=cosine", "train.steps=30")
    with pytest.raises(ConfigError, match=r"with optim\.schedule cosine the rate of every step depends on it"):
        check_output(longer, resume=True)


def test_a_length_edited_in_the_runs_own_file_is_seen(tmp_path: Path) -> None:
    """If the run is of an earlier version, the edited file is compared with itself."""
    for schedule, planned in (("constant", None), ("cosine", 25)):
        config = config_in(tmp_path, f"optim.schedule={schedule}")
        assert planned_length(config, config.train.steps) == planned
        check_length(planned, config, 25)
        check_length(None, config, 30)  # saved by an earlier version
    with pytest.raises(ConfigError, match=r"was planned for 25 steps, and is to have 30: with optim\.schedule cosine"):
        check_length(planned, config, 30)


def test_pieces_may_change_where_there_are_workers(tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path, "rollout.placement=ray"), steps=1)
    changed = config_in(tmp_path, "rollout.placement=ray", "rollout.prompts_per_piece=4")
    _, told = check_output(changed, resume=True)
    assert told.startswith("rollout.prompts_per_piece: from here on the run equals an uninterrupted one")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", "seed was 0 and is 1"),
        ("optim.lr=0.5", r"optim\.lr was 0\.\d+ and is 0\.5"),
        ("sampling.max_tokens=9", r"sampling\.max_tokens was \d+ and is 9"),
        ("rewards.correct_weight=2", r"rewards\.correct_weight was 1\.0 and is 2\.0"),
        ("data.limit=5", r"data\.limit was None and is 5"),
        ("train.steps=3", r"train\.steps was 25 and is 3 \(it may be raised, not lowered\)"),
    ],
)
def test_what_would_be_another_run_is_refused(override: str, words: str, tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path), steps=1)
    with pytest.raises(ConfigError, match=f"cannot be resumed with another configuration: {words}") as refused:
        check_output(config_in(tmp_path, override), resume=True)
    assert "depends on" not in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "edited", "words"),
    [
        ("^seed: 0$", "seed: 1", "seed was 0 and is 1"),
        ("^  lr: .*$", "  lr: '2e-3'", r"optim\.lr was 0\.001 and is 0\.002"),
        ("^  max_prompt_tokens: 40\n", "", r"data\.max_prompt_tokens was 40 and is 512"),
        ("^  rank: 1$", "  rank: 4", r"lora\.rank was 1 and is 4"),
        ("^  name: embedded$", "  name: /models/mine", r"model\.name was 'embedded' and is '/models/mine'"),
        ("^  format_weight: .*$", "  format_weight: 2", r"rewards\.format_weight was 0\.0 and is 2\.0"),
        ("^  steps: 25$", "  steps: 2", r"train\.steps was 25 and is 2 \(it may be raised, not lowered\)"),
    ],
)
def test_an_edit_of_the_runs_own_file_is_named(pattern: str, edited: str, words: str, tmp_path: Path) -> None:
    """It was refused by a digest, after everything had been loaded, and without the name of the key."""
    begun(tmp_path, config_in(tmp_path), steps=1)
    text, count = re.subn(pattern, edited, (tmp_path / "config.yaml").read_text(), flags=re.MULTILINE)
    assert count == 1
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"^{tmp_path} cannot be resumed with another configuration: {words}") as told:
        check_output(load_config(str(tmp_path / "config.yaml")), resume=True)
    assert str(told.value).endswith(". Give what it was, or another output_dir; --overwrite starts over")


def test_what_may_change_is_noted_from_the_runs_own_file_too(tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path), steps=1)
    file = tmp_path / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    file.write_text("# mine\n" + yaml.safe_dump({key: tree[key] for key in reversed(tree)}) + "\n\n")
    assert check_output(load_config(str(file)), resume=True) == []
    tree["train"]["steps"] = 40
    file.write_text(yaml.safe_dump(tree))
    longer = load_config(str(file))
    (told,) = check_output(longer, resume=True)
    assert told.endswith("train.steps was 25 and is 40")
    Records(tmp_path, longer).open(1)
    assert json.loads((tmp_path / RESUMED).read_text())["changed"] == {"train.steps": {"from": 25, "to": 40}}
    assert check_output(longer, resume=True) == []


def test_a_supervised_run_grows_where_its_rate_and_data_allow(tmp_path: Path) -> None:
    """Neither its learning rate nor its data may depend on its length. Data made to the length of the run were refused
    after the weights were loaded, as if somebody had changed them."""
    for settings, reason in (
        (("optim.schedule=constant", "data.limit=9"), None),
        (("optim.schedule=linear", "data.limit=9"), r"with optim\.schedule linear the rate"),
        (("optim.schedule=constant",), r"without data\.limit it says how many examples data\.source arithmetic makes"),
    ):
        begun(tmp_path, sft_in(tmp_path, *settings))
        longer = sft_in(tmp_path, *settings, "train.steps=5000")
        if reason is None:
            assert len(check_output(longer, resume=True)) == 1
            continue
        with pytest.raises(ConfigError, match=rf"train\.steps was 1000 and is 5000 \({reason}"):
            check_output(longer, resume=True)


def test_a_run_without_checkpoints_is_not_made_longer(tmp_path: Path) -> None:
    """It would start again from its first step, over its existing results."""
    settings = ("optim.schedule=constant", "data.limit=9")
    begun(tmp_path, sft_in(tmp_path, *settings, "train.steps=3"), steps=3, saved=False)
    with pytest.raises(ConfigError, match=r"3 steps on record and no checkpoint to continue from.*--overwrite"):
        check_output(sft_in(tmp_path, *settings, "train.steps=5"), resume=True)


def test_a_key_that_an_older_configuration_lacks_had_its_default(tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path))
    text = (tmp_path / "config.yaml").read_text()
    assert "  clip_norm: 0.0\n" in text
    (tmp_path / "config.yaml").write_text(text.replace("  clip_norm: 0.0\n", ""))
    (tmp_path / "starts.jsonl").unlink()  # of a version that noted no settings there
    assert check_output(config_in(tmp_path), resume=True) == []


def test_a_longer_run_keeps_the_rate_that_the_rule_gave(tmp_path: Path) -> None:
    begun(tmp_path, config_in(tmp_path, "optim.lr=0.5"))
    longer = config_in(tmp_path, "train.steps=500", "optim.lr=auto")
    check_place(longer, resume=True, overwrite=False)
    settled = settle_rate(longer, RunConsole(quiet=True, steps=0), resume=True)
    assert settled.optim.lr == 0.5
    check_output(settled, resume=True)
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.5 and is 0\.25\. Give what it was"):
        check_place(config_in(tmp_path, "train.steps=500", "optim.lr=0.25"), resume=True, overwrite=False)


def test_a_run_that_was_moved_is_the_same_run(tmp_path: Path) -> None:
    begun(tmp_path / "old", config_in(tmp_path / "old"), steps=1)
    (tmp_path / "old").rename(tmp_path / "new")
    assert check_output(config_in(tmp_path / "new"), resume=True) == []


def test_a_resumption_without_a_run_says_so(tmp_path: Path) -> None:
    run = tmp_path / "typo"
    assert check_output(config_in(run), resume=True) == [
        f"there is no run in {run} to resume: this one starts from the beginning"
    ]


def _as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        (
            "starts.jsonl",
            lambda path: path.write_text('{"beg'),
            r"starts.jsonl cannot be .* mend that line, or remove it$",
        ),
        (
            "starts.jsonl",
            lambda path: path.write_bytes(b"\0" * 700),
            r"line 1 is not JSON: Expecting value: .* remove it$",
        ),
        ("starts.jsonl", lambda path: path.write_text("[1]\n"), "that is not a start's: .*: remove it$"),
        ("metrics.jsonl", lambda path: path.write_text('{"st\n{"step": 1}\n'), "mend that line, or remove it$"),
        ("metrics.jsonl", lambda path: path.write_text('{"loss": 1}\n'), "that is not a step's: .*: remove it$"),
        ("config.yaml", lambda path: path.write_text(""), "is damaged: .*; if it is removed, --resume compares"),
        (
            "config.yaml",
            lambda path: path.write_text("seed: 1\n"),
            "is damaged: .*; if it is removed, --resume compares",
        ),
        (
            "config.yaml",
            lambda path: path.write_bytes(b"\0" * 90),
            "is damaged: .*; if it is removed, --resume compares",
        ),
        (".rl_engine", _as_directory, "is a directory, where the run keeps a file: move it away"),
        ("metrics.jsonl", _as_directory, "is a directory, where the run keeps a file: move it away"),
        ("rollouts", lambda path: path.write_text(""), "is a file, where the run keeps a directory: move it away"),
    ],
)
def test_a_damaged_file_is_named_with_a_way_out(name: str, damage: Any, told: str, tmp_path: Path) -> None:
    """Before anything is loaded. And it keeps no other run from taking the place."""
    begun(tmp_path, config := config_in(tmp_path), steps=1)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=told) as refused:
        check_output(config, resume=True)
    assert "\n" not in str(refused.value)
    if name != ".rl_engine":
        (replaced,) = dry_output(config, Beginning(overwrite=True))
        assert replaced.startswith("--overwrite would move the earlier run (")


def test_lost_lines_of_metrics_are_told(tmp_path: Path) -> None:
    """A run that resumed without a word would show a history with a hole."""
    begun(tmp_path, config := config_in(tmp_path), steps=3)
    (tmp_path / "checkpoints" / "step000001").rename(tmp_path / "checkpoints" / "step000004")
    assert check_output(config, resume=True) == []  # the last step's own line is in its checkpoint
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join([*lines[:2], lines[2][:5]]))
    (told,) = check_output(config, resume=True)
    assert "metrics.jsonl lacks 2 of the 4 steps that are done, from step 2: their metrics are lost" in told


def test_without_configuration_and_checkpoints_nothing_begins(tmp_path: Path) -> None:
    """It would begin anew over its own records."""
    begun(tmp_path, config := config_in(tmp_path), steps=3, saved=False)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="3 steps on record and no checkpoint to continue from"):
        check_output(config, resume=True)


@pytest.mark.parametrize(
    ("old", "eval_every", "moved"),
    [("eval.every=2", 2, True), ("eval.every=0", 0, True), ("eval.every=3", 3, False), ("eval.every=2", 3, False)],
)
def test_scores_after_the_old_last_step_move_into_the_record(
    old: str, eval_every: int, moved: bool, tmp_path: Path
) -> None:
    records = begun(tmp_path, config_in(tmp_path, "train.steps=3", old), steps=1)
    earlier = {"step": 2, "eval/arithmetic/avg": 0.25}
    records.metrics(earlier)
    last = {"step": 3, "reward/mean": 0.5, "eval/arithmetic/avg": 0.75}
    records.metrics(last)
    Records(tmp_path, config_in(tmp_path, "train.steps=6", f"eval.every={eval_every}")).open(3)
    noted = json.loads((tmp_path / RESUMED).read_text())
    assert read_metrics(tmp_path)[-2] == earlier
    if moved:
        assert read_metrics(tmp_path)[-1] == {"step": 3, "reward/mean": 0.5}
        assert noted["evaluated"] == {"eval/arithmetic/avg": 0.75}
    else:
        assert read_metrics(tmp_path)[-1] == last
        assert "evaluated" not in noted


@pytest.mark.parametrize(
    ("made_by", "words"),
    [
        ("0" * 64, "is of an earlier version of this program, and cannot be resumed; --overwrite starts over"),
        (lambda mine: f"{'0' * 32}-{mine.partition('-')[2]}", "was made by another configuration"),
        (lambda mine: f"{mine.partition('-')[0]}-{'0' * 32}", r"data\.path \(mine\.jsonl\) has changed since step 7"),
    ],
)
def test_a_checkpoint_of_other_problems_or_settings_is_refused(made_by: Any, words: str, tmp_path: Path) -> None:
    config = config_in(tmp_path, "data.source=jsonl", "data.path=mine.jsonl")
    mine = config_hash(config, problems_digest([((1, 2), "3+4=?")]))
    check_resumable(mine, config, mine, 7)
    # config.yaml is gone, in which an earlier version noted no commit.
    pinned = config.with_values("model", revision="aaa")
    check_resumable(mine, pinned, config_hash(pinned, mine.partition("-")[2]), 7)
    with pytest.raises(ConfigError, match=words):
        check_resumable(made_by(mine) if callable(made_by) else made_by, config, mine, 7)


def test_the_digest_of_problems_sees_every_part_of_them() -> None:
    base: Problems = [((1, 2), "a"), ((3,), "b")]
    others: list[Problems] = [
        [((1, 2), "a")],
        [((3,), "b"), ((1, 2), "a")],
        [((1, 2, 3), "a"), ((), "b")],
        [((1, 2), "a"), ((3,), "c")],
    ]
    assert len({problems_digest(problems) for problems in (base, *others)}) == 5


class _ToldRanks:
    """Ranks where another rank has seen something else."""

    def __init__(self, other: Any) -> None:
        self.other = other

    def gather(self, mine: list[Any]) -> list[Any]:
        return [*mine, self.other]


@pytest.mark.parametrize(
    ("other", "words"),
    [((None, "", ""), "rank 0 1, rank 1 none"), ((1, "0" * 64, ""), "the same newest"), ((None, "", "torn"), "torn")],
)
def test_all_ranks_resume_from_one_checkpoint_or_stop(other: Any, words: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(RunState(step=1, position=1, version=1, config_hash="h"), {"w": torch.ones(1)})
    found = newest_on_all(checkpoints, Ranks(0, 1, torch.device("cpu")))
    assert found is not None
    assert found[0].step == 1
    digest = hashlib.sha256((tmp_path / "step000001" / "manifest.json").read_bytes()).hexdigest()
    assert newest_on_all(checkpoints, cast("Ranks", _ToldRanks((1, digest, "")))) is not None
    with pytest.raises(ValueError, match=words):
        newest_on_all(checkpoints, cast("Ranks", _ToldRanks(other)))
