"""What is wrong with a configuration, as its user is told: one line, headed by where it was said, with the way out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rl_engine.config import Config, load_config
from rl_engine.config.elsewhere import ABSENT, ELSEWHERE, OBJECTIVES, SIGNS
from rl_engine.config.fields import field_at, fields
from rl_engine.config.file import CONFIGS, CommandConfig, ConfigError, read_config, shipped
from rl_engine.config.hints import edits, near
from rl_engine.config.sft import SftConfig
from rl_engine.sft import __main__ as sft
from rl_engine.sweep import __main__ as sweep
from rl_engine.sweep.config import SweepConfig
from rl_engine.train import __main__ as train

SCHEMAS: tuple[type[CommandConfig], ...] = (Config, SftConfig, SweepConfig)


def message(name: str, *overrides: str, schema: type[CommandConfig] = Config) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(schema, name, overrides)
    return str(caught.value)


def value(key: str, *overrides: str) -> Any:
    found: Any = load_config("quickstart.yaml", overrides)
    for part in key.split("."):
        found = getattr(found, part)
    return found


# What is written there.


@pytest.mark.parametrize(("written", "meant"), [("010", 10), ("08", 8), ("1_000", 1000), ("0x10", 16), ("1e3", 1000)])
def test_a_number_is_the_one_that_is_written(written: str, meant: int, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((CONFIGS / "quickstart.yaml").read_text() + f"\nseed: {written}\n")
    assert load_config(str(mine)).seed == value("seed", f"seed={written}") == meant
    assert read_config(SweepConfig, "sweep_starts.yaml", [f"confirm_seeds=[{written}]"]).confirm_seeds == (meant,)


@pytest.mark.parametrize(("written", "meant"), [("yes", True), ("off", False), ("n", False), ("ON", True)])
def test_a_switch_takes_the_words_for_it(written: str, meant: bool) -> None:
    assert value("learner.gradient_checkpointing", f"learner.gradient_checkpointing={written}") is meant


def test_a_time_is_no_number_of_base_sixty() -> None:
    assert message("quickstart.yaml", "seed=1:30").endswith("not '1:30'")
    assert message("quickstart.yaml", "optim.lr=1:30") == (
        "command line: optim.lr is '1:30': it takes number > 0, ≤ 1 or `auto`"
    )


def test_a_wrong_item_of_a_list_is_one_line() -> None:
    assert message("sweep_starts.yaml", "seeds=1:30", schema=SweepConfig) == (
        "command line: seeds.0: input should be a valid integer, unable to parse string as an integer, not '1:30'"
    )
    assert "write it as" in message("sweep_starts.yaml", "seeds=[]", schema=SweepConfig)


def test_a_key_twice_in_a_mapping_on_the_command_line_is_named() -> None:
    assert message("quickstart.yaml", "rewards.function_arguments={a: 1, a: 2}") == (
        "command line: rewards.function_arguments: '{a: 1, a: 2}': a is given twice"
    )


def test_a_text_of_digits_is_read_again_from_the_resolved_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    for name in ("1e5", "010", "0o17", "no"):
        mine.write_text(load_config("quickstart.yaml", [f"output_dir={name}"]).to_yaml())
        assert load_config(str(mine)).output_dir == name


# Where it was said.


def test_a_problem_is_headed_by_where_it_was_said(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((CONFIGS / "quickstart.yaml").read_text() + "\nseeed: 1\n")
    assert message("quickstart.yaml", "lora.rank=0").startswith("command line: lora.rank: ")
    assert message(str(mine)) == f"{mine}: seeed: no such key; did you mean seed?"
    both = message(str(mine), "lora.rank=0", "optim.lr=-1").splitlines()
    assert both[0] == "command line:"
    assert [line.split()[0] for line in both[1:3]] == ["lora.rank:", "optim.lr"]
    assert both[3:] == [f"{mine}:", "  seeed: no such key; did you mean seed?"]
    # Only together are these wrong, and the file was there first.
    assert message("quickstart.yaml", "eval.n=4").startswith("command line: eval.n is 4")
    assert message("quickstart.yaml", "log.wandb=${oc.env:NO_SUCH_NAME}").startswith("command line: Environment")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.lr=-1", "optim.lr is -1: it takes number > 0, ≤ 1 or `auto`"),
        ("optim.lr=.inf", "optim.lr is inf: it takes a finite number > 0, ≤ 1 or `auto`"),
        ("optim.lr=[1]", "optim.lr is [1]: it takes number > 0, ≤ 1 or `auto`"),
        ("lora.expert_rank=0.5", "lora.expert_rank is 0.5: it takes whole number or `auto`"),
        ("rollout.max_kl=low", "rollout.max_kl is 'low': it takes number ≥ 0 or `auto`"),
        ("optim.betas=0.9", "optim.betas: list of number ≥ 0, < 1, not 0.9: write it as [0.9, 0.95]"),
        ("lora.rank_pattern=8", "lora.rank_pattern: mapping, not 8: write it as {NAME: VALUE}"),
        ("lora=8", "lora: a section, not 8; its keys are lora.rank, lora.alpha"),
        ("model=org/name", "model: a section, not 'org/name'; its keys are model.name"),
        ("loss.name=GSPO", "did you mean gspo?"),
        ("eval.suites.0=gsm8k", "eval.suites is a list: give the whole of it, eval.suites=[…]"),
        ("eval.suites[0]=gsm8k", "eval.suites=[…]"),
        ("--lora.rank=8", "settings are written plainly, lora.rank=8"),
        ("+lora.rank=8", "settings are written plainly, lora.rank=8"),
        ("lora.rank", "write key.sub=value, without spaces, lora.rank=VALUE"),
        ("=8", "write key.sub=value"),
        ("lora..rank=8", "is not a key"),
        ("lora.targets=[q_proj,", "'[q_proj,' is not YAML: put it in quotes"),
        ("seed=null", "seed: input should be a valid integer, not None"),
        ("seed=true", "seed: input should be a valid integer, unable to parse string as an integer, not 'true'"),
        ("train.steps=yes", "train.steps: input should be a valid integer"),
        ("optim.lr=on", "optim.lr is 'true': it takes number > 0, ≤ 1 or `auto`"),
        ("eval.limit=false", "eval.limit"),
        ("output_dir=''", "output_dir: string should have at least 1 character, not ''"),
        (
            "output_dir=${PATH}/x",
            "'PATH' not found; the variable of the environment is ${oc.env:PATH}",
        ),
        ("output_dir=${NONE}", "Interpolation key 'NONE' not found"),
        ("seed.x=3", "seed: input should be a valid integer"),
        ("seed=4294967296", "seed: input should be less than or equal to 4294967295, not 4294967296"),
        ("log.wandb=false", "log.wandb: input should be a valid string, not False; give a text, or null for none"),
        ("log.trackio=True", "log.trackio: input should be a valid string, not True; give a text, or null for none"),
        ("prompt.instruction=no", "give a text, or null for none"),
    ],
)
def test_an_override_that_is_wrong_is_told_in_one_line(override: str, line: str) -> None:
    said = message("quickstart.yaml", override)
    assert said.startswith("command line: ")
    assert line in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("override", "key", "wanted"),
    [
        ("eval.suites=held_out", "eval.suites", ("held_out",)),
        ("eval.suites=held_out,gsm8k", "eval.suites", ("held_out", "gsm8k")),
        ("data.arithmetic.terms=3", "data.arithmetic.terms", (3,)),
        ("data.arithmetic.terms=3,4", "data.arithmetic.terms", (3, 4)),
        ("lora.targets=q_proj,v_proj", "lora.targets", ("q_proj", "v_proj")),
        ("lora.targets=mlp", "lora.targets", "mlp"),
        ("rewards.answer_forms=answer_is,boxed", "rewards.answer_forms", ("answer_is", "boxed")),
        ("sampling.stop=a, b", "sampling.stop", ("a, b",)),
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.lr = 1E-3 ", "optim.lr", 1e-3),
        ("log.tensorboard=no", "log.tensorboard", False),
        ("log.tensorboard=off", "log.tensorboard", False),
        ("lora.rslora=Yes", "lora.rslora", True),
        ("lora.rslora=True", "lora.rslora", True),
        ("log.wandb=2026", "log.wandb", "2026"),
        ("output_dir=1e5", "output_dir", "1e5"),
        ("prompt.instruction={problem} {", "prompt.instruction", "{problem} {"),
        ("lora.start_from=null", "lora.start_from", None),
        ("lora.start_from=None", "lora.start_from", None),
        ("prompt.instruction=None", "prompt.instruction", None),
        ("prompt.instruction=None of it.", "prompt.instruction", "None of it."),
        ("log.wandb=none", "log.wandb", None),
        ("eval.limit=None", "eval.limit", None),
        ("loss.sampler_correction=none", "loss.sampler_correction", "none"),
        ("model.name=None", "model.name", "None"),
        ("data={arithmetic: {largest: 9}}", "data.arithmetic.terms", (3, 4, 5, 6)),
    ],
)
def test_what_people_write_means_what_they_mean(override: str, key: str, wanted: Any) -> None:
    assert value(key, override) == wanted


def test_an_arm_may_be_called_none(tmp_path: Path) -> None:
    arms = ["arms={none: {}, mask: {loss.sampler_correction: token_mask}}", "reference=none"]
    assert read_config(SweepConfig, "sweep_gsm8k.yaml", arms).reference == "none"


def test_a_number_in_place_of_a_variable_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEPS", raising=False)
    with warnings.catch_warnings(action="error"):
        assert value("train.steps", "train.steps=${oc.env:STEPS,3}") == 3
    monkeypatch.setenv("STEPS", "7")
    assert value("train.steps", "train.steps=${oc.env:STEPS,3}") == 7


def test_a_path_from_the_home_directory_leads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell has seen what stands in a file, and after `data.path=` it leaves a `~` alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert value("output_dir", "output_dir=~/runs/a") == f"{tmp_path}/runs/a"
    assert value("data.path", "data.source=file", "data.path=~/a.jsonl") == f"{tmp_path}/a.jsonl"
    assert value("eval.suites", "eval.suites=[~/a.jsonl, held_out]") == (f"{tmp_path}/a.jsonl", "held_out")
    assert value("sampling.stop", "sampling.stop=~/") == ("~/",)
    assert value("model.name", "model.name=~/model") == "~/model"
    mix = value("data.mix", "data.source=mix", "data.mix=[{source: file, path: ~/a.jsonl}, {source: gsm8k}]")
    assert mix[0].path == f"{tmp_path}/a.jsonl"


def test_a_dotted_key_in_a_file_is_shown_in_its_section(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train.steps: 2\n")
    said = message(str(tmp_path / "mine.yaml"))
    assert "train.steps: no such key; a file has keys in their section, train: {steps: 2}\n" in said


def test_a_section_may_be_taken_back_and_given_anew() -> None:
    """Overrides hold in turn."""
    assert value("eval.every", "eval=null", "eval.suites=held_out") == 10


def test_a_section_without_keys_is_empty(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((CONFIGS / "quickstart.yaml").read_text() + "\nrewards:\n  # all as it is\n")
    assert load_config(str(mine)).rewards == load_config("quickstart.yaml").rewards
    assert load_config(str(mine), ["rewards.format_weight=0.1"]).rewards.format_weight == 0.1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"- a\n- b\n", "a configuration is a mapping of keys to values, not '- a\\n- b'"),
        (b"5\n", "a mapping of keys to values, not '5'"),
        (b"", "the file is empty"),
        (b"# nothing\n\n", "the file is empty"),
        (b"a: [1\n", "line 2: "),
        (b"seed: 1\nlora:\n\trank: 2\n", "line 3: a tab"),
        (b"seed: 1\nseed: 2\n", "line 2: seed is given twice"),
        (b"lora: {rank: 1, rank: 2}\n", "line 1: rank is given twice"),
        (b"\xff\xfe\x00", "UTF-16 text"),
        (b"seed: 1\n---\nseed: 2\n", "line 2: "),
        (b"seed: ${nowhere}\n", "nowhere"),
    ],
)
@pytest.mark.parametrize("overrides", [(), ("seed=3",)])
def test_a_file_that_is_no_configuration_is_told_in_one_line(
    text: bytes, words: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    if b"${" in text and overrides:
        return  # then it is not needed
    result = CliRunner().invoke(train.app, ["--config", str(path), *overrides])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {path}")
    assert words in result.output
    assert result.output.count("\n") == 1


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + (CONFIGS / "quickstart.yaml").read_bytes())
    assert load_config(str(path)).train.steps == 25


def test_a_file_with_equals_signs_is_told_of_colons(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed = 3\n")
    assert "seed = 3: no such key; a file has a colon there, seed: 3" in message(str(path))


def test_a_directory_is_told_to_name_its_file(tmp_path: Path) -> None:
    assert message(str(tmp_path)) == f"--config {tmp_path} is a directory without a YAML file"
    (tmp_path / "config.yaml").touch()
    assert message(str(tmp_path)) == f"--config {tmp_path} is a directory: name a file in it, {tmp_path}/config.yaml"


def test_a_grid_on_the_command_line_is_as_in_a_file() -> None:
    """A grid on the command line is what it would be in a file."""
    overrides = ["grid.lora.rank=1,8", "grid.optim.lr=1e-3", "arms={one: {}, two: null}", "reference=null"]
    config = read_config(SweepConfig, "sweep_rates.yaml", overrides)
    assert config.grid == {"lora.rank": (1, 8), "optim.lr": (1e-3,)}
    assert config.arms["two"] == {}


# Another command's file.


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_another_commands_file_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    own = next(schema for schema in SCHEMAS if _loads(schema, name))
    for schema, app in zip(SCHEMAS, (train.app, sft.app, sweep.app), strict=True):
        if schema is own:
            continue
        result = CliRunner().invoke(app, ["--config", name, f"output_dir={tmp_path}"])
        assert result.exit_code == 2
        assert result.output.count("\n") == 1
        assert f"python -m {own.module} --config {name}" in result.output


def _loads(schema: type[CommandConfig], name: str) -> bool:
    try:
        return bool(read_config(schema, name))
    except ConfigError:
        return False


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_signs_of_a_command_are_its_keys_alone(schema: type[CommandConfig]) -> None:
    for other in SCHEMAS:
        keys = {key for key, _ in fields(other)} | set(other.model_fields)
        keys |= {key.rpartition(".")[0] for key in keys}
        signs = SIGNS[schema.module]
        assert (signs <= keys) if other is schema else not (signs & keys)


def test_a_mistake_in_ones_own_file_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    tree = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    tree["data"]["test_size"] = 3
    path.write_text(yaml.safe_dump(tree))
    assert message(str(path)).startswith(f"{path}: data.test_size: no such key")


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_ships_for_a_command_is_listed_and_loads(schema: type[CommandConfig]) -> None:
    assert len(shipped(schema.module)) >= 3
    for name in shipped(schema.module):
        assert _loads(schema, name)


# What others call it.


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_others_call_a_key_leads_to_keys_that_exist(name: str) -> None:
    targets = [setting.partition("=") for setting in ELSEWHERE[name].split()]
    for key, _, text in targets:
        found = [field_at(schema, key) for schema in (Config, SftConfig)]
        assert any(found), key
        if text:
            read_config(
                Config if found[0] else SftConfig,
                "quickstart.yaml" if found[0] else "sft_jsonl.yaml",
                [f"{key}={text}"],
            )
    # What a schema has under this very name needs no translation.
    if "." not in name:
        for schema, base in ((Config, "quickstart.yaml"), (SftConfig, "sft_jsonl.yaml")):
            if name not in schema.model_fields:
                assert f"{name}: no such key; " in message(base, f"{name}=1", schema=schema)


@pytest.mark.parametrize(
    ("schema", "override", "words"),
    [
        (Config, "learning_rate=1e-5", ["optim.lr"]),
        (Config, "num_generations=8", ["sampling.n"]),
        (Config, "max_completion_length=9", ["sampling.max_tokens"]),
        (Config, "max_prompt_length=9", ["data.max_prompt_tokens"]),
        (Config, "lora_r=9", ["lora.rank"]),
        (Config, "lora.r=9", ["lora.rank"]),
        (Config, "lora.lora_alpha=9", ["lora.alpha"]),
        (Config, "micro_batch_size=9", ["learner.tokens_per_microbatch"]),
        (SftConfig, "micro_batch_size=9", ["train.microbatch_size"]),
        (Config, "gradient_accumulation_steps=9", ["train.problems_per_step", "learner.tokens_per_microbatch"]),
        (SftConfig, "gradient_accumulation_steps=9", ["train.batch_size", "train.microbatch_size"]),
        (Config, "beta=0.1", ["loss.kl_coef"]),
        (Config, "epsilon=0.1", ["loss.clip_low", "loss.clip_high"]),
        (Config, "actor_rollout_ref.rollout.n=8", ["actor_rollout_ref.rollout.n", "sampling.n"]),
        (Config, "actor_rollout_ref.actor.optim.lr=1", ["optim.lr"]),
        (Config, "actor_rollout_ref.model.path=x", ["model.name"]),
        (Config, "algorithm.adv_estimator=rloo", ["loss.baseline=leave_one_out"]),
        (Config, "algorithm.adv_estimator=strange", ["loss.baseline"]),
        (Config, "loss_type=dr_grpo", ["loss.name=ppo_clip"]),
        (SftConfig, "sequence_len=9", ["data.max_tokens"]),
        (SftConfig, "adapter=lora", ["method"]),
        (SftConfig, "loss.name=grpo", ["rl_engine.train has it"]),
        (Config, "data.test_size=9", ["rl_engine.sft has it"]),
        (Config, "actor_rollout_ref.rollout.name=vllm", ["docs/configuration.md"]),
        (SftConfig, "base_model=x", ["model.name"]),
        (SftConfig, "datasets=x", ["data.source", "data.path"]),
        (SftConfig, "lr_scheduler_type=cosine", ["optim.schedule"]),
        (Config, "lr_scheduler_type=cosine", ["optim.schedule"]),
        (Config, "val_set_size=0.1", ["another's"]),
        (Config, "lora_dropout=0.1", ["no dropout"]),
    ],
)
def test_a_key_of_another_library_is_told_in_our_words(
    schema: type[CommandConfig], override: str, words: list[str]
) -> None:
    said = message("quickstart.yaml" if schema is Config else "sft_jsonl.yaml", override, schema=schema)
    assert "\n" not in said
    assert all(word in said for word in words), said


def test_a_whole_file_of_another_library_is_told_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "axolotl.yaml"
    path.write_text("base_model: x\nlora_r: 8\ntrainer: {total_epochs: 1, nnodes: 1}\n")
    lines = message(str(path)).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "base_model",
        "lora_r",
        "trainer.total_epochs",
        "trainer.nnodes",
        "model, data, optim, train",
    ]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objectives_name_is_told_as_the_keys_that_make_it(name: str) -> None:
    said = message("quickstart.yaml", f"loss.name={name}")
    settings = [word.strip(",;") for word in OBJECTIVES[name].split() if "=" in word]
    assert settings
    assert all(setting in said for setting in settings)
    assert load_config("quickstart.yaml", settings)
    assert "\n" not in said


def test_no_name_is_both_ours_and_absent() -> None:
    assert not any(key.split(".")[-1] in ABSENT for key, _ in fields(Config))


# Nearest names.


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [("", "ab", 2), ("rank", "rank", 0), ("rnak", "rank", 1), ("rnk", "rank", 1), ("lr", "n", 2)],
)
def test_edits_are_counted(one: str, other: str, count: int) -> None:
    assert edits(one, other) == edits(other, one) == count


def test_a_name_is_near_within_an_edit_for_each_three_letters() -> None:
    names = ["rank", "alpha", "problems_per_step", "n"]
    assert near("rnk", names) == near("Rank", names) == "rank"
    assert near("problem-per-steps", names) == "problems_per_step"
    assert [near(name, names) for name in ("k", "ra", "ran_dom", "steps", "")] == [None] * 5


@pytest.mark.parametrize(
    ("override", "end"),
    [
        ("zebra=1", "docs/configuration.md lists the keys"),
        ("lora.zebra=1", "lora has rank, alpha"),
        ("lorra.rank=1", "did you mean lora.rank?"),
        ("steps=1", "did you mean train.steps?"),
        ("every=1", "did you mean eval.every or checkpoint.every?"),
        ("sampling.max_token=1", "did you mean sampling.max_tokens?"),
    ],
)
def test_a_hint_is_given_where_a_name_is_near(override: str, end: str) -> None:
    assert end in message("quickstart.yaml", override)


# At the command.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quickstart.yaml"], ["--config quickstart.yaml"]),
        (["quickstart", "seed=1"], ["--config quickstart"]),
        (["seed=1", "quickstart.yaml"], ["--config quickstart.yaml"]),
        (["--config", "quickstart.yaml", "--lora.rank", "8"], ["no option --lora.rank", "lora.rank=8"]),
        (["--config", "quickstart.yaml", "--learning-rate=1"], ["learning_rate=1"]),
        (["--config", "quickstart.yaml", "--overwite"], ["did you mean --overwrite?"]),
        (["--config", "quickstart.yaml", "lora.rank", "=", "8"], ["without spaces"]),
        (["--config", "quickstart.yaml", "lora.rank", "8"], ["without spaces"]),
        (["--config=quickstart.yaml", "lora.rank=", "8"], ["'8' is not a setting"]),
    ],
)
@pytest.mark.parametrize("app", [train.app, sft.app])
def test_a_command_line_that_is_wrong_is_told_in_one_line(app: Any, arguments: list[str], words: list[str]) -> None:
    if app is sft.app:
        arguments = [argument.replace("quickstart", "sft_jsonl") for argument in arguments]
        words = [word.replace("quickstart", "sft_jsonl") for word in words]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert all(word in result.output for word in words), result.output
