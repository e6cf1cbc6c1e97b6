"""Adapters that PEFT itself wrote elsewhere: which are read as they are, and which are refused before anything is
loaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from evals.policies import check_adapter
from rl_engine.config import load_config
from rl_engine.inspect.__main__ import app as inspect_app
from rl_engine.policy.lora.adapter import add_adapter, go_on_from
from rl_engine.policy.lora.adapter import check_adapter as check_start
from rl_engine.run.checks import check_parts
from rollout.adapters import AdapterError
from rollout.models import EMBEDDED_DIR
from rollout.peft_format import read_peft

START = ("lora.rank=2", "lora.alpha=4", "lora.targets=[q_proj,v_proj]")
IDS = torch.tensor([[11, 12, 5, 13, 7, 8, 3]])


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """Makes what PEFT saves for an adapter of the embedded model with these settings; its update is far from zero."""

    def make(**settings: Any) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = LoraConfig(
                **{
                    "r": 2,
                    "lora_alpha": 4,
                    "target_modules": ["q_proj", "v_proj"],
                    "task_type": "CAUSAL_LM",
                    **settings,
                }
            )
            model = get_peft_model(base(), config)
            torch.manual_seed(0)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter.data, std=0.02)
            model.save_pretrained(str(tmp_path / "made"))
        return tmp_path / "made"

    return make


def change(directory: Path, **settings: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


SAME: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain": ({}, ()),
    "a regular expression": ({"target_modules": r".*\.(q|v)_proj"}, ()),
    "all-linear": ({"target_modules": "all-linear"}, ("lora.targets=all",)),
    "dropout": ({"lora_dropout": 0.1}, ()),
    "rsLoRA": ({"use_rslora": True}, ("lora.rslora=true",)),
    "ranks and alphas by pattern": (
        {"rank_pattern": {"v_proj": 1}, "alpha_pattern": {"layers.0.self_attn.q_proj": 8}},
        ("lora.rank_pattern={v_proj: 1}", "lora.alpha_pattern={layers.0.self_attn.q_proj: 8}"),
    ),
    "exclude_modules": ({"target_modules": "all-linear", "exclude_modules": r".*(k|o|gate|up|down)_proj"}, ()),
    "an orthogonal start": ({"init_lora_weights": "orthogonal"}, ()),
}


@pytest.mark.parametrize("name", SAME)
def test_a_plain_lora_goes_on_as_what_peft_makes_of_it(name: str, made: Callable[..., Path]) -> None:
    settings, here = SAME[name]
    directory = made(**settings)
    expected = logits(PeftModel.from_pretrained(base(), directory))
    assert (expected - logits(base())).abs().max() > 0.01
    # Unused fields of a newer PEFT, and a base model under a different path.
    change(directory, of_a_newer_peft=None, another=False, base_model_name_or_path="/elsewhere/embedded")
    config = load_config("quickstart.yaml", [*START, *here, f"lora.start_from={directory}"])
    check_parts(config)
    check_start(config.model, config.lora, 0)
    model, _ = add_adapter(base(), config.lora, 0)
    go_on_from(model, config.lora, config.model.name)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert check_adapter(str(directory))[1].directory == directory
    shown = CliRunner().invoke(inspect_app, [str(directory)])
    assert shown.exit_code == 0, shown.output


def test_names_without_pefts_prefix_mean_the_same(made: Callable[..., Path]) -> None:
    """Some trainers leave it out. vLLM serves such an adapter; PEFT loads nothing of it."""
    directory = made()
    expected = logits(PeftModel.from_pretrained(base(), directory))
    file = directory / "adapter_model.safetensors"
    save_file({name.removeprefix("base_model.model."): tensor for name, tensor in load_file(file).items()}, file)
    config = load_config("quickstart.yaml", [*START, f"lora.start_from={directory}"])
    model, _ = add_adapter(base(), config.lora, 0)
    go_on_from(model, config.lora, config.model.name)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def _newer(directory: Path) -> None:
    change(directory, use_newer_method=True)


def _pickled(directory: Path) -> None:
    torch.save(load_file(directory / "adapter_model.safetensors"), directory / "adapter_model.bin")
    (directory / "adapter_model.safetensors").unlink()


def _halved(directory: Path) -> None:
    file = directory / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _one_factor(directory: Path) -> None:
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[max(tensors)]
    save_file(tensors, file)


def _narrower(directory: Path) -> None:
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    name = max(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: tensors[name][:, :1].contiguous()}, file)


MORE: dict[str, tuple[dict[str, Any], Callable[[Path], Any] | None, str]] = {
    "DoRA": ({"use_dora": True}, None, "(use_dora=True)"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, None, "(modules_to_save=['lm_head'])"),
    "biases of layers": ({"bias": "all"}, None, "(bias=all)"),
    "biases of the adapter": ({"lora_bias": True}, None, "(lora_bias=True)"),
    "PiSSA": ({"init_lora_weights": "pissa"}, None, "(init_lora_weights=pissa)"),
    "OLoRA": ({"init_lora_weights": "olora"}, None, "(init_lora_weights=olora)"),
    "rows of the embedding": ({"trainable_token_indices": [1]}, None, "(trainable_token_indices=[1])"),
    "an activated LoRA": ({"alora_invocation_tokens": [1]}, None, "(alora_invocation_tokens=[1])"),
    "repeated layers": ({}, lambda path: change(path, layer_replication=[[0, 2], [1, 4]]), "(layer_replication="),
    "a newer PEFT's": ({}, _newer, "(use_newer_method=True)"),
    "another method": ({}, lambda path: change(path, peft_type="IA3"), "peft_type is 'IA3'"),
    "the embedding": ({"target_modules": ["embed_tokens"]}, None, "embed_tokens"),
    "a pickle": ({}, _pickled, "adapter_model.bin is a pickle"),
    "half a file": ({}, _halved, "adapter_model.safetensors is damaged"),
    "one factor": ({}, _one_factor, "has only one of the factors A and B"),
    "another rank": ({}, lambda path: change(path, r=8), "has factors of rank 2 and 2, and adapter_config.json says 8"),
    "unequal ranks": ({}, _narrower, "has factors of rank 2 and 1, and adapter_config.json says 2"),
    "no finite number": ({}, lambda path: change(path, lora_alpha=float("nan")), "lora_alpha is nan"),
    "no pattern": (
        {},
        lambda path: change(path, rank_pattern={"(": 2}),
        "the pattern '(' of r is no regular expression",
    ),
    "no number": ({}, lambda path: change(path, r="8"), "r is '8'"),
    "no JSON": ({}, lambda path: (path / "adapter_config.json").write_text("{"), "adapter_config.json is damaged"),
    "a list": ({}, lambda path: (path / "adapter_config.json").write_text("[]"), "adapter_config.json is damaged"),
}


@pytest.mark.parametrize("name", MORE)
def test_more_or_less_than_lora_is_refused_before_loading(name: str, made: Callable[..., Path]) -> None:
    settings, damage, said = MORE[name]
    directory = made(**settings)
    if damage is not None:
        damage(directory)
    start = load_config("quickstart.yaml", [*START, f"lora.start_from={directory}"])
    for what, key in (
        (lambda: check_parts(start), "lora.start_from: "),
        (lambda: check_start(start.model, start.lora, 0), "lora.start_from: "),
        (lambda: check_adapter(str(directory)), "--adapter: "),
        (lambda: read_peft(directory), ""),
    ):
        with pytest.raises(AdapterError) as refused:
            what()
        message = str(refused.value)
        assert message.startswith(f"{key}{directory}")
        assert said in message
        assert "\n" not in message
    shown = CliRunner().invoke(inspect_app, [str(directory)])
    assert (shown.exit_code, said in shown.output) == (2, True)


def test_the_model_of_an_adapter_may_lie_in_the_hubs_cache(made: Callable[..., Path]) -> None:
    """If the user loaded the model by the path of its snapshot, the last part of that path is a commit."""
    directory = made()
    config = load_config("quickstart.yaml", [*START, f"lora.start_from={directory}"])
    change(directory, base_model_name_or_path="/cache/models--me--Embedded/snapshots/0a1b2c")
    check_start(config.model, config.lora, 0)
    for trained_on, said in (
        ("me/embedded-bnb-4bit", "give model.name=me/embedded-bnb-4bit, or set base_model_name_or_path in its"),
        ("/cache/models--me--other/snapshots/embedded", "is an adapter of"),
        (None, "does not name its base model"),
    ):
        change(directory, base_model_name_or_path=trained_on)
        with pytest.raises(AdapterError, match=said):
            check_start(config.model, config.lora, 0)


def test_layers_without_an_adapter_are_reported_with_a_number(made: Callable[..., Path]) -> None:
    config = load_config("quickstart.yaml", [*START, f"lora.start_from={made(layers_to_transform=[0, 1])}"])
    with pytest.raises(AdapterError, match=r"does not adapt the layers of lora.targets: it lacks 8 \(such as "):
        check_start(config.model, config.lora, 0)
