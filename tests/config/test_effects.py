"""Keys without effect: refused where the user gave them, left out where a later override switched them off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from rl_engine.config import Config, load_config
from rl_engine.config.effects import RULES
from rl_engine.config.fields import fields
from rl_engine.config.file import CONFIGS, CommandConfig, ConfigError, read_config
from rl_engine.config.sft import SftConfig
from rl_engine.sweep.cells import arguments_of, arms_of, cell_of, target_of
from rl_engine.sweep.config import SweepConfig
from rl_engine.train.__main__ import app
from tests.helpers.sweep_fake import sweep_of

# The keys that need no rule, with the reason. Keys that have a rule are not listed here.
ALWAYS = """
seed output_dir method model.name model.dtype data.source data.level data.limit data.shuffle data.replay data.seed
data.max_prompt_tokens data.test_size data.max_tokens data.packing prompt.template prompt.instruction
sampling.n sampling.temperature sampling.top_p sampling.max_tokens sampling.stop
rewards.workers rewards.timeout_s rewards.memory_mib rewards.answer_forms rewards.correct_weight
rewards.mask_truncated rewards.mask_unscored rewards.format_weight rewards.overlong_weight rewards.repetition_weight
rewards.function
rollout.placement rollout.max_num_seqs rollout.max_kl rollout.max_logprob_gap
optim.lr optim.betas optim.eps optim.clip_norm optim.weight_decay optim.schedule optim.warmup_steps
loss.name loss.baseline loss.normalizer loss.sampler_correction loss.kl_coef loss.entropy_coef
learner.updates_per_step learner.epochs_per_step learner.tokens_per_microbatch learner.layout
learner.gradient_checkpointing
train.steps train.problems_per_step train.max_problems_per_step train.epochs train.batch_size train.microbatch_size
train.attention train.gradient_checkpointing
eval.suites checkpoint.every checkpoint.keep checkpoint.keep_adapters
log.tensorboard log.wandb log.trackio log.every
command base set grid arms axis seeds confirm_seeds score.metric score.mode score.at score.tolerance curves jobs
time_limit_s keep
"""
# The schema itself refuses these if they would mean nothing, however the configuration is read.
CHECKED = """
data.mix prompt.system prompt.frame prompt.template_arguments loss.clip_low loss.clip_high sampling.top_k sampling.min_p
rollout.max_staleness rollout.leg_tokens eval.best
rewards.function_arguments learner.offload_optimizer reference
"""
# A configuration may be written on one machine and run on another, so it does not know about GPUs or further ranks.
BY_MACHINE = "rollout.kv_cache_gib rollout.memory_fraction rollout.tensor_parallel_size learner.zero_stage"
NO_RULE = [keys.split() for keys in (ALWAYS, CHECKED, BY_MACHINE)]

IDLE = {
    "together": ("sweep_layers_sft.yaml", "together=3", "command=train"),
    "data.path": ("quickstart.yaml", "data.path=my.jsonl", "data.source=jsonl"),
    "data.columns.problem": ("quickstart.yaml", "data.columns.problem=q", "data.source=jsonl"),
    "data.name": ("gsm8k.yaml", "data.name=org/set", "data.source=hub"),
    "data.subset": ("gsm8k.yaml data.source=hub data.path=x.jsonl", "data.subset=main", "data.path=null"),
    "data.revision": ("sft_tulu3.yaml", "data.revision=1234567", "data.source=hub"),
    "data.task": ("gsm8k.yaml", "data.task=gcd", "data.source=reasoning_gym"),
    "data.task_settings": ("gsm8k.yaml", "data={task_settings: {max_value: 9}}", "data.source=reasoning_gym"),
    "data.split": ("gsm8k.yaml", "data.split=test", "data.source=hub"),
    "data.arithmetic.largest": (
        "gsm8k.yaml data.source=reasoning_gym data.task=gcd eval.suites=held_out",
        "data.arithmetic={largest: 9}",
        "data.source=arithmetic data.task=null",
    ),
    "data.arithmetic.wording": ("gsm8k.yaml", "data.arithmetic.wording='{expression}'", "eval.suites=held_out"),
    "data.arithmetic.count": ("gsm8k.yaml", "data.arithmetic.count=9", "data.source=arithmetic"),
    "model.revision": ("quickstart.yaml", "model.revision=1234567", "model.name=org/model"),
    "lora.rank": ("quickstart.yaml method=full", "lora.rank=8", "method=lora"),
    "lora.plus_ratio": ("quickstart.yaml method=full", "lora.plus_ratio=8", "method=lora"),
    "lora.numbers": ("quickstart.yaml", "lora.numbers=8", "lora.init=tiny"),
    "lora.init": ("quickstart.yaml method=full", "lora.init=pissa", "method=lora"),
    "rewards.format_think": ("quickstart.yaml", "rewards.format_think=true", "rewards.format_weight=0.1"),
    "rewards.overlong_buffer_tokens": (
        "quickstart.yaml",
        "rewards.overlong_buffer_tokens=8",
        "rewards.overlong_weight=1",
    ),
    "rewards.repetition_ngram": ("quickstart.yaml", "rewards.repetition_ngram=3", "rewards.repetition_weight=1"),
    "rewards.function_weight": ("quickstart.yaml", "rewards.function_weight=2", "rewards.function=my:reward"),
    "rollout.workers": ("quickstart.yaml", "rollout.workers=4", "rollout.placement=ray"),
    "rollout.address": ("quickstart.yaml", "rollout.address=auto", "rollout.placement=ray"),
    "rollout.piece_timeout_s": ("quickstart.yaml", "rollout.piece_timeout_s=9", "rollout.placement=ray"),
    "rollout.sleep": ("quickstart.yaml rollout.placement=ray", "rollout.sleep=false", "rollout.placement=inprocess"),
    "loss.correction_max": ("quickstart.yaml", "loss.correction_max=3", "loss.sampler_correction=token_mask"),
    "loss.kl_penalty": ("quickstart.yaml", "loss.kl_penalty=k2", "loss.kl_coef=0.1"),
    "learner.attention": (
        "quickstart.yaml learner.layout=shared_prompt",
        "learner.attention=eager",
        "learner.layout=padded",
    ),
    "eval.limit": ("quickstart.yaml eval.suites=[]", "eval.limit=9", "eval.suites=[held_out]"),
    "eval.every": ("quickstart.yaml eval.suites=[]", "eval.every=9", "eval.suites=[held_out]"),
    "eval.top_p": ("quickstart.yaml", "eval.top_p=0.9", "eval.temperature=0.6"),
    "eval.data_dir": ("quickstart.yaml", "eval.data_dir=suites", "eval.suites=[held_out,math500]"),
    "data.test_path": ("embedded.yaml", "data.test_path=t.jsonl", "data.source=jsonl"),
    "data.random_pairs.count": ("embedded.yaml", "data.random_pairs.count=99", "data.source=random_pairs"),
    "data.arithmetic.direct_share": ("sft_jsonl.yaml", "data.arithmetic.direct_share=0", "data.source=arithmetic"),
    "data.chat_template": ("sft_openthoughts3.yaml", "data.chat_template=tulu", "prompt.template=chat"),
    "eval.at": ("embedded.yaml data.test_size=0", "eval.at=[5]", "data.test_size=9"),
}


def schema_of(name: str) -> type[CommandConfig]:
    if name.startswith("sweep_"):
        return SweepConfig
    return SftConfig if name.startswith(("sft_", "embedded")) else Config


@pytest.mark.parametrize("schema", [Config, SftConfig, SweepConfig])
def test_of_every_key_it_is_known_when_it_has_no_effect(schema: type[BaseModel]) -> None:
    ruled = {
        key for key, _ in fields(schema) for rule in RULES for name in rule.keys if f"{key}.".startswith(f"{name}.")
    }
    for key, _ in fields(schema):
        places = [key in ruled, *(key in keys for keys in NO_RULE)]
        assert sum(places) == 1, f"{key}: when has it no effect? A rule in rl_engine/config/effects.py, or a word here"


def test_the_rules_and_the_lists_here_name_keys_that_exist() -> None:
    known = {key for schema in (Config, SftConfig, SweepConfig) for key, _ in fields(schema)}
    sections = {key.rpartition(".")[0] for key in known}
    for rule in RULES:
        assert {*rule.keys, *rule.depends_on} <= known | sections
    assert {key for keys in NO_RULE for key in keys} <= known
    reached = {key for key in IDLE for rule in RULES if any(f"{key}.".startswith(f"{name}.") for name in rule.keys)}
    assert reached == set(IDLE)
    for rule in RULES:
        assert any(f"{key}.".startswith(f"{name}.") for key in IDLE for name in rule.keys), rule


@pytest.mark.parametrize("key", IDLE)
def test_a_key_without_effect_is_refused_with_the_way_out(key: str, tmp_path: Path) -> None:
    base, given, cure = IDLE[key]
    name, *before = base.split()
    schema = schema_of(name)
    for order in ([*before, given], [given, *before]):
        with pytest.raises(ConfigError) as caught:
            read_config(schema, name, order)
        line = str(caught.value)
        assert line.startswith(f"command line: {key} is ")
        assert "has no effect" in line
        assert "\n" not in line
    # The same in the user's own file, under the file's name.
    tree = yaml.safe_load(read_config(schema, name, before).to_yaml())
    where = tree
    *path, last = key.split(".")
    for part in path:
        where = where[part]
    parsed = yaml.safe_load(given.partition("=")[2])
    where[last] = parsed[last] if isinstance(parsed, dict) else parsed
    if last == "revision":
        where[last] = "1234567"
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {key} is .* has no effect"):
        read_config(schema, str(mine))
    # With the key that it needs, it is accepted.
    value: Any = read_config(schema, name, [*before, given, *cure.split()])
    for part in key.split("."):
        value = getattr(value, part)
    assert value not in (None, (), dict(fields(schema))[key].default)


def test_the_quickstart_with_a_file_says_how(tmp_path: Path) -> None:
    """The command refuses it before anything is loaded or created."""
    run = tmp_path / "run"
    result = CliRunner().invoke(app, ["--config", "quickstart.yaml", "data.path=my.jsonl", f"output_dir={run}"])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "data.path is 'my.jsonl', and has no effect" in result.output
    assert "data.source=file" in result.output
    assert not run.exists()


@pytest.mark.parametrize("name", ["gsm8k.yaml", "sft_jsonl.yaml", "sft_tulu3.yaml"])
def test_a_name_of_the_hub_beside_a_file_is_refused_or_left_out(name: str, tmp_path: Path) -> None:
    """data.path wins. If a settings file names a dataset on the hub, the command line may replace it with a local
    file."""
    schema, given = schema_of(name), ["data.name=org/set", "data.path=mine.jsonl", "data.source=hub"]
    for order in (given, given[::-1]):
        with pytest.raises(
            ConfigError, match=r"data.name is 'org/set', and has no effect: data.path \(mine.jsonl\) is"
        ):
            read_config(schema, name, order)
    tree = yaml.safe_load(read_config(schema, name).to_yaml())
    tree["data"] |= {"source": "hub", "name": "org/set", "revision": "main"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    config: Any = read_config(schema, str(tmp_path / "mine.yaml"), ["data.path=mine.jsonl"])
    assert (config.data.path, config.data.name, config.data.revision) == ("mine.jsonl", None, None)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "{source: arithmetic, path: data.csv}",
            "path is 'data.csv', and has no effect: source arithmetic makes its own",
        ),
        (
            "{source: file, path: a.csv, task: gcd}",
            "task is 'gcd', and has no effect: no task is generated: source is file",
        ),
        (
            "{source: file, name: a/b, path: a.csv}",
            "name is 'a/b', and has no effect: path (a.csv) is read instead of the",
        ),
        (
            "{source: gsm8k, subset: main}",
            "subset is 'main', and has no effect: no hub dataset is chosen by name: source",
        ),
        (
            "{source: gsm8k, split: test}",
            "split is 'test', and has no effect: neither a hub dataset nor a directory of",
        ),
        ("{source: arithmetic, columns: {problem: q}}", "columns.problem is 'q', and has no effect: source arithmetic"),
    ],
)
def test_a_source_of_a_mix_is_held_to_the_same_rules(source: str, line: str, tmp_path: Path) -> None:
    mix = f"data.mix=[{{source: gsm8k, limit: 9}}, {source}]"
    with pytest.raises(ConfigError) as caught:
        load_config("gsm8k.yaml", ["data.source=mix", mix])
    assert str(caught.value).startswith(f"command line: data.mix.1: {line}")
    assert "\n" not in str(caught.value)
    tree = yaml.safe_load(load_config("gsm8k.yaml").to_yaml())
    tree["data"] |= {"source": "mix", "mix": [yaml.safe_load(source)]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"mine.yaml: data.mix.0: .* has no effect"):
        load_config(str(tmp_path / "mine.yaml"), ["data.limit=null"])


def test_a_count_of_sums_that_each_source_says_itself_is_refused() -> None:
    mix = "data.mix=[{source: gsm8k}, {source: arithmetic, limit: 9}]"
    with pytest.raises(
        ConfigError, match=r"count is 99, and has no effect: every source of sums in data.mix has a limit"
    ):
        load_config("gsm8k.yaml", ["data.source=mix", mix, "data.arithmetic.count=99"])
    assert load_config("gsm8k.yaml", ["data.source=mix", mix.replace(", limit: 9", ""), "data.arithmetic.count=99"])
    for sums in (["data.source=mix", mix], ["data.source=arithmetic", "data.limit=9"]):  # a level is drawn from them
        assert load_config("gsm8k.yaml", [*sums, "data.arithmetic.count=99", "data.level=[2,3]"])


def test_a_mix_may_lose_its_sums(tmp_path: Path) -> None:
    """What the file says about sums is left out with them; it was refused, as if the file had no sums itself."""
    tree = yaml.safe_load(load_config("gsm8k.yaml").to_yaml())
    mix = [{"source": "gsm8k"}, {"source": "arithmetic"}]
    tree["data"] |= {"source": "mix", "mix": mix, "arithmetic": {"largest": 9, "count": 99}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(str(tmp_path / "mine.yaml"), ["data.mix=[{source: gsm8k}]"])
    assert config.data.arithmetic == load_config("gsm8k.yaml").data.arithmetic


def test_a_measurement_after_the_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval.at is \[7, 9\], and has no effect: .* \(5\); give steps before that"):
        read_config(SftConfig, "embedded.yaml", ["train.steps=5", "eval.at=[7,9]", "train.epochs=null"])
    assert read_config(SftConfig, "embedded.yaml", ["train.steps=8", "eval.at=[7,9]", "train.epochs=null"])


def test_a_value_that_is_the_default_is_no_question() -> None:
    assert load_config("quickstart.yaml", ["method=full", "lora.rank=1", "rollout.workers=2", "eval.top_p=1"])


@pytest.mark.parametrize(
    ("name", "overrides", "left_out"),
    [
        ("gsm8k.yaml", ["method=full"], "lora.rank"),
        ("sft_jsonl.yaml", ["method=full", "data.path=x.jsonl"], "lora.rank"),
        ("quickstart.yaml", ["data.source=jsonl", "data.path=x.jsonl", "eval.suites=[]"], "data.arithmetic.largest"),
        ("smollm2_arithmetic.yaml", ["data.limit=9"], "data.arithmetic.count"),
        ("deepmath.yaml", ["eval.temperature=0", "eval.n=1"], "eval.top_p"),
        ("embedded.yaml", ["data.test_size=0"], "eval.every"),
    ],
)
def test_what_the_command_line_switches_off_is_left_out(
    name: str, overrides: list[str], left_out: str, tmp_path: Path
) -> None:
    """The configuration that runs is the one written to config.yaml, and it loads again."""
    schema = schema_of(name)
    config: Any = read_config(schema, name, overrides)
    value = config
    for part in left_out.split("."):
        value = getattr(value, part)
    assert value == dict(fields(schema))[left_out].default
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config.to_yaml())
    assert read_config(schema, str(resolved)) == config


def test_what_leaving_out_switches_off_is_left_out_too(tmp_path: Path) -> None:
    """A file that sets sampling for its evaluations, run without any evaluation: the leftover sampling settings used to
    make a config.yaml that could not be loaded again."""
    mine, resolved = tmp_path / "mine.yaml", tmp_path / "config.yaml"
    sampled = "eval: {temperature: 0.6, top_k: 20, min_p: 0.1, "
    mine.write_text((CONFIGS / "quickstart.yaml").read_text().replace("eval: {", sampled))
    config = load_config(str(mine), ["eval.suites=[]"])
    resolved.write_text(config.to_yaml())
    assert load_config(str(resolved)) == config


def test_an_arm_may_switch_off_what_all_cells_are_given() -> None:
    config = sweep_of(
        set={"lora": {"rank": 8, "alpha": 16}, "train.steps": 2},
        grid={"optim.lr": [1e-3]},
        arms={"rank 8": {}, "full": {"method": "full"}},
    )
    arms = {arm.name: arm for arm in arms_of(config)}
    assert arms["rank 8"].overrides == {"lora.rank": 8, "lora.alpha": 16, "train.steps": 2}
    assert arms["full"].overrides == {"method": "full", "train.steps": 2}
    cell = cell_of(config, arms["full"], 1e-3, 0)
    assert load_config("quickstart.yaml", arguments_of(cell.overrides)).method == "full"


def test_an_arm_that_contradicts_itself_is_refused_by_its_name() -> None:
    config = sweep_of(grid={"optim.lr": [1e-3]}, arms={"full": {"method": "full", "lora.rank": 4}})
    (arm,) = arms_of(config)
    with pytest.raises(ConfigError, match=r"arm full, optim.lr=0.001: .*lora.rank is 4, and has no effect"):
        target_of(config, arm, 1e-3)


@pytest.mark.parametrize("where", ["method=full lora.rank=8", "lora.rank=8 method=full"])
def test_the_order_on_a_command_line_does_not_matter(where: str) -> None:
    with pytest.raises(ConfigError, match=r"lora.rank is 8, and has no effect"):
        load_config("gsm8k.yaml", where.split())
