"""Configuration: the shipped files load, and a mistake is reported with its key, value and range."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rl_engine.config import Config, load_config
from rl_engine.config.file import CONFIGS, ConfigError, read_config
from rl_engine.config.reference import reference
from rl_engine.config.sft import SftConfig

SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml") if not path.name.startswith("sweep_"))
SUPERVISED = {name for name in SHIPPED if name.startswith("sft_")} | {"embedded.yaml"}


def test_the_promised_configurations_ship() -> None:
    promised = {"quickstart.yaml", "gsm8k.yaml", "math.yaml", "deepmath.yaml", "qwen3_math.yaml"}
    promised |= {"smollm2_arithmetic.yaml"}
    supervised = {"sft_tulu3.yaml", "sft_openthoughts3.yaml", "sft_jsonl.yaml", "embedded.yaml"}
    assert promised | supervised <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_is_its_resolved_form(name: str, tmp_path: Path) -> None:
    schema: type[Config] | type[SftConfig] = SftConfig if name in SUPERVISED else Config
    config = read_config(schema, name)
    assert config.output_dir == f"runs/{Path(name).stem}"
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config.to_yaml())
    assert read_config(schema, str(resolved)) == config


def test_deepmath_is_the_promised_recipe() -> None:
    config = load_config("deepmath.yaml")
    assert config.model.name == "Qwen/Qwen3-8B-Base"
    assert (config.lora.rank, config.lora.alpha, config.sampling.max_tokens) == (1, 32, 8192)
    assert {"aime2024", "aime2025"} <= set(config.eval.suites)


def test_overrides_are_typed_and_the_last_one_wins() -> None:
    config = load_config("quickstart.yaml", ["lora.rank=4", "optim.lr=2e-4", "lora.targets=[q_proj]", "lora.rank=8"])
    assert (config.lora.rank, config.optim.lr, config.lora.targets) == (8, 2e-4, ("q_proj",))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.rnk=8", ["lora.rnk", "lora.rank"]),
        ("lr=1e-4", ["lr", "optim.lr"]),
        ("train.step=3", ["train.step", "train.steps"]),
        ("lora.rank=abc", ["lora.rank", "integer", "'abc'"]),
        ("lora.rank=0", ["lora.rank", "greater than or equal to 1", "0"]),
        ("lora.rank=513", ["lora.rank", "512", "513"]),
        ("optim.lr=.nan", ["optim.lr", "finite"]),
        ("sampling.n=1", ["sampling.n", "2 or more"]),
        ("sampling.temperature=0", ["sampling.temperature", "(0, 2]"]),
        ("prompt.template=chatt", ["prompt.template", "'chatt'", "chat"]),
        ("loss.name=ppo", ["loss.name", "importance_sampling", "'ppo'"]),
        ("eval.n=4", ["eval.n", "eval.temperature"]),
        ("method=lorra", ["method", "'lora'", "'lorra'"]),
        ("rank", ["'rank'", "key.sub=value"]),
    ],
)
def test_a_wrong_override_names_key_value_and_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart.yaml", [override])
    for word in words:
        assert word in str(caught.value)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart.yaml", ["lora.rank=0", "optim.lr=9", "seeed=1"])
    assert all(key in str(caught.value) for key in ("lora.rank", "optim.lr", "seeed"))


def test_a_missing_configuration_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"quikstart.*quickstart\.yaml"):
        load_config("quikstart")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "just words\n"])
def test_a_file_that_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="broken"):
        load_config(str(path))


def test_a_configuration_cannot_be_changed_afterwards() -> None:
    config = load_config("quickstart.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.lora.rank = 2  # type: ignore[misc]


def test_yaml_is_loaded_safely(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("seed: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError):
        load_config(str(path))


def test_the_resolved_form_is_plain_yaml() -> None:
    tree = yaml.safe_load(load_config("quickstart.yaml").to_yaml())
    assert set(tree) == set(Config.model_fields)


def test_the_reference_in_the_docs_is_that_of_the_code() -> None:
    written = (CONFIGS.parent / "docs" / "configuration.md").read_text()
    assert written == reference(), "run: python -m rl_engine.config.reference > docs/configuration.md"
    assert "`optim.lr`" in written
