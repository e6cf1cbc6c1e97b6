"""Keys that are not ours: those of other commands, those of other libraries, and misspellings of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl_engine.config import Config, load_config
from rl_engine.config.fields import field_at, fields
from rl_engine.config.file import CONFIGS, CommandConfig, ConfigError, read_config, shipped
from rl_engine.config.hints import edits, near
from rl_engine.config.other_trainers import ABSENT, ELSEWHERE, OBJECTIVES, SIGNS
from rl_engine.config.sft import SftConfig
from rl_engine.sft import __main__ as sft
from rl_engine.sweep import __main__ as sweep
from rl_engine.train import __main__ as train
from tests.helpers.told import SCHEMAS, message

# Settings of another command's file.


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_another_commands_file_is_one_line(name: str, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_ships_for_a_command_is_listed_and_loads(schema: type[CommandConfig]) -> None:
    assert len(shipped(schema.module)) >= 3
    for name in shipped(schema.module):
        assert _loads(schema, name)


# Other libraries' names for a key.


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
    # A name that the schema itself has needs no translation.
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
        (Config, "lora.dropout=0.1", ["adapters have no dropout here"]),
        (Config, "eval.steps=9", ["here it is eval.every"]),
        (Config, "output=runs/x", ["here it is output_dir"]),
        (Config, "lora.lora_alpha=9", ["lora.alpha"]),
        (Config, "micro_batch_size=9", ["learner.tokens_per_microbatch"]),
        (SftConfig, "micro_batch_size=9", ["train.microbatch_size"]),
        (Config, "gradient_accumulation_steps=9", ["train.problems_per_step", "learner.tokens_per_microbatch"]),
        (SftConfig, "gradient_accumulation_steps=9", ["train.batch_size", "train.microbatch_size"]),
        (Config, "beta=0.1", ["loss.kl_coef"]),
        (Config, "num_iterations=2", ["learner.epochs_per_step"]),
        (Config, "steps_per_generation=2", ["learner.updates_per_step"]),
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
        (Config, "tokenizer.path=x", ["model.name"]),
        (Config, "push_to_hub=true", ["rl_engine.push"]),
        (Config, "groups_per_batch=64", ["train.problems_per_step"]),
        (Config, "grpo.num_generations_per_prompt=8", ["sampling.n"]),
    ],
)
def test_a_key_of_another_library_is_translated(schema: type[CommandConfig], override: str, words: list[str]) -> None:
    said = message("quickstart.yaml" if schema is Config else "sft_jsonl.yaml", override, schema=schema)
    assert "\n" not in said
    assert all(word in said for word in words), said


def test_a_whole_file_of_another_library_is_translated(tmp_path: Path) -> None:
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
def test_an_objectives_name_is_translated_into_keys(name: str) -> None:
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
