"""The messages for mistakes in a configuration: one line, headed by where the mistake was made, with the way out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rl_engine.config import load_config
from rl_engine.config.file import CONFIGS, read_config, shipped
from rl_engine.config.sft import SftConfig
from rl_engine.sft import __main__ as sft
from rl_engine.sweep.config import SweepConfig
from rl_engine.train import __main__ as train
from tests.helpers.told import message, value

# How values are written.


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


def test_a_place_that_is_not_there_is_reported_without_the_names() -> None:
    assert (
        message("runs/mine/config.yaml") == "no configuration 'runs/mine/config.yaml': there is no directory runs/mine"
    )
    absent = "no configuration {!r}, neither a file nor a shipped one; {}"
    assert message("conf/quickstart.yaml") == absent.format("conf/quickstart.yaml", "did you mean quickstart.yaml?")
    own = ", ".join(shipped("rl_engine.sft"))
    assert message("mine.yaml", schema=SftConfig) == absent.format("mine.yaml", f"shipped are {own}")


@pytest.mark.parametrize("line", ["model: {name: ${oc.env:BASE}}", "eval: {suites: [${oc.env:SUITE}]}"])
def test_an_interpolation_inside_braces_wants_quotes(line: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"seed: 1\n{line}\n")
    told = 'line 2: between { } or [ ] a ${…} is written in quotes, "${…}"'
    assert message(str(tmp_path / "mine.yaml")) == f"{tmp_path / 'mine.yaml'}, {told}"


def test_a_setting_of_all_cells_is_named_as_the_sweep_has_it() -> None:
    told = message("sweep_rates.yaml", "lora.rank=4", schema=SweepConfig)
    assert told.endswith("no such key; set.lora.rank is one of all cells, grid.lora.rank has values to compare")


# Where the mistake was made.


def test_a_problem_is_headed_by_where_it_was_set(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((CONFIGS / "quickstart.yaml").read_text() + "\nseeed: 1\n")
    assert message("quickstart.yaml", "lora.rank=0").startswith("command line: lora.rank: ")
    assert message(str(mine)) == f"{mine}: seeed: no such key; did you mean seed?"
    both = message(str(mine), "lora.rank=0", "optim.lr=-1").splitlines()
    assert both[0] == "command line:"
    assert [line.split()[0] for line in both[1:3]] == ["lora.rank:", "optim.lr"]
    assert both[3:] == [f"{mine}:", "  seeed: no such key; did you mean seed?"]
    # These two are wrong only in combination, and the file came first.
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
        ("lora.targets=[]", "lora.targets is (): give all, or the names of some layers"),
        ("sampling.stop=[a,'']", "sampling.stop.1: string should have at least 1 character"),
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
def test_an_override_that_is_wrong_is_one_line(override: str, line: str) -> None:
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


def test_that_there_is_no_home_directory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no entry for the user, as in a container that was started with a numeric user id."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    told = message("quickstart.yaml", "output_dir=~/runs/a")
    assert "output_dir is '~/runs/a', and there is no home directory: HOME is not set" in told


def test_a_path_from_the_home_directory_leads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell does not expand a `~` in a file, or after `data.path=`."""
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
    assert "train.steps: no such key; in a file write the key in its section, train: {steps: 2}\n" in said


def test_a_section_may_be_taken_back_and_given_anew() -> None:
    """Overrides apply in order."""
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
        (b"[train]\nsteps = 2\n", "line 2: a [table] as in TOML; a configuration is YAML"),
        (b"seed = 1\n[train]\nsteps = 2\n", ": a [table] as in TOML; a configuration is YAML"),
        (b"lora:\n  rank:3\n  alpha: 2\n", "line 2: rank:3 has no space after its colon"),
        (b"train: {steps: 2}\nseed:3\n", "line 2: seed:3 has no space after its colon"),
        (b"seed: 1\nseed: 2\n", "line 2: seed is given twice"),
        (b"lora: {rank: 1, rank: 2}\n", "line 1: rank is given twice"),
        (b"\xff\xfe\x00", "UTF-16 text"),
        (b"seed: 1\n---\nseed: 2\n", "line 2: "),
        (b"seed: ${nowhere}\n", "nowhere"),
    ],
)
@pytest.mark.parametrize("overrides", [(), ("seed=3",)])
def test_a_file_that_is_no_configuration_is_one_line(
    text: bytes, words: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    if b"${" in text and overrides:
        return  # the override replaces the value that cannot be resolved
    result = CliRunner().invoke(train.app, ["--config", str(path), *overrides])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {path}")
    assert words in result.output
    assert result.output.count("\n") == 1


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + (CONFIGS / "quickstart.yaml").read_bytes())
    assert load_config(str(path)).train.steps == 25


def test_a_file_with_equals_signs_gets_a_hint_of_colons(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed = 3\n")
    assert "seed = 3: no such key; in a file write a colon, seed: 3" in message(str(path))


def test_a_directory_in_place_of_a_file_gets_a_hint(tmp_path: Path) -> None:
    assert message(str(tmp_path)) == f"--config {tmp_path} is a directory without a YAML file"
    (tmp_path / "config.yaml").touch()
    assert message(str(tmp_path)) == f"--config {tmp_path} is a directory: name a file in it, {tmp_path}/config.yaml"


def test_a_grid_on_the_command_line_is_as_in_a_file() -> None:
    overrides = ["grid.lora.rank=1,8", "grid.optim.lr=1e-3", "arms={one: {}, two: null}", "reference=null"]
    config = read_config(SweepConfig, "sweep_rates.yaml", overrides)
    assert config.grid == {"lora.rank": (1, 8), "optim.lr": (1e-3,)}
    assert config.arms["two"] == {}


def test_a_mistake_in_ones_own_file_is_reported_as_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    tree = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    tree["data"]["test_size"] = 3
    path.write_text(yaml.safe_dump(tree))
    assert message(str(path)).startswith(f"{path}: data.test_size: no such key")


# Through the command.


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
def test_a_command_line_that_is_wrong_is_one_line(app: Any, arguments: list[str], words: list[str]) -> None:
    if app is sft.app:
        arguments = [argument.replace("quickstart", "sft_jsonl") for argument in arguments]
        words = [word.replace("quickstart", "sft_jsonl") for word in words]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert all(word in result.output for word in words), result.output


def test_a_name_that_a_shell_left_empty_is_told() -> None:
    """It was taken for the working directory: `--config  is a directory: name a file in it`."""
    assert message("") == "--config is empty: give a YAML file, or the name of a shipped configuration"


def test_a_secret_is_refused_in_our_words_alone() -> None:
    """They began with `ConfigError raised while resolving interpolation: `."""
    told = message("quickstart.yaml", "model.name=${oc.env:MY_TOKEN}")
    assert told.startswith("command line: MY_TOKEN looks like a secret, which must not end up in config.yaml")
