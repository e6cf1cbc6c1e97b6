"""Which directories hold a policy that can be evaluated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from evals.forgetting.__main__ import refuse_misfits
from evals.policies import find_policies, same_model
from rl_engine.config.file import ConfigError
from rl_engine.inspect.versions import directories
from rl_engine.run.checks import check_start
from rollout.adapters import AdapterError, AdapterStore
from rollout.models import EMBEDDED_DIR
from rollout.types import AdapterRef
from tests.helpers.families import tiny_config
from tests.helpers.peft_adapters import write_peft

MODEL_CONFIG = AutoConfig.from_pretrained(EMBEDDED_DIR)


def policies(*arguments: str) -> list[Any]:
    return find_policies(arguments, "embedded", MODEL_CONFIG)


def test_published_versions_and_plain_peft_directories_are_taken(tmp_path: Path, adapter: Path) -> None:
    write_peft(tmp_path / "mine", rank_pattern={"x": 9}, base_model_name_or_path="other/model")
    (link := tmp_path / "best").symlink_to(adapter)
    published, foreign, named = policies(str(link), str(tmp_path / "mine"), f"again={adapter}")
    assert (published.label, published.ref.key, published.remarks) == ("policy-v000007", "policy-v000007", ())
    assert published.ref.path == adapter
    assert (foreign.label, foreign.ref.rank) == ("mine", 9)
    assert "no manifest" in foreign.remarks[0]
    assert "'other/model'" in foreign.remarks[1]
    assert (named.label, named.ref.key) == ("again", "again-v000007")


def test_a_directory_may_hold_the_sign_that_ends_a_name(tmp_path: Path) -> None:
    """The directories of a sweep do: `rank-1_optim.lr=0.001_seed=0`."""
    write_peft(tmp_path / "lr=0.001_seed=0")
    plain, named = policies(str(tmp_path / "lr=0.001_seed=0"), f"rank 1, seed 0={tmp_path}/lr=0.001_seed=0")
    assert (plain.label, named.label) == ("lr=0.001_seed=0", "rank 1, seed 0")
    assert plain.ref.path == named.ref.path == tmp_path / "lr=0.001_seed=0"
    (short,) = policies(f"lr=1e-3={tmp_path}/lr=0.001_seed=0")
    assert (short.label, short.ref.path) == ("lr=1e-3", plain.ref.path)


def test_of_a_run_the_best_version_is_measured_and_named(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "run" / "adapters")
    for version in (1, 2):
        store.publish(version, write_peft, {"base_model": "embedded", "rank": 2})
    (newest,) = policies(str(tmp_path / "run"))
    assert (newest.label, "using its newest version, v000002" in newest.why) == ("policy-v000002", True)
    store.point("best", 1)
    best, named = policies(str(tmp_path / "run"), f"mine={tmp_path / 'run'}")
    assert (best.label, named.label) == ("policy-v000001", "mine")
    assert "using its best version, v000001" in best.why
    assert best.ref.path == named.ref.path == store.path_of(1)
    (given,) = policies(str(store.root / "latest"))
    assert (given.label, given.why) == ("policy-v000002", "")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"r": 600}, "600"),
        ({"hidden": 128}, "q_proj it maps 128 values to 192, and that model 192 to 192"),
        ({"layers": 6}, "it adapts model.layers.4.self_attn.q_proj, which the model lacks"),
    ],
)
def test_what_vllm_cannot_serve_on_this_model_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_peft(tmp_path / "mine", **settings)
    with pytest.raises(AdapterError, match=words):
        policies(str(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("module", "inputs", "outputs", "words"),
    [
        ("model.layers.0.mlp.down_proj", 256, 192, "maps 256 values to 192, and that model 512 to 192"),
        ("model.layers.0.mlp.up_proj", 192, 256, "maps 192 values to 256, and that model 192 to 512"),
        ("model.layers.3.self_attn.k_proj", 192, 64, "maps 192 values to 64, and that model 192 to 192"),
        ("model.layers.0.self_attn.o_proj", 64, 192, "maps 64 values to 192"),
        ("lm_head", 192, 32, "at lm_head it maps 192 values to 32, and that model 192 to 21"),
        ("model.layers.4.mlp.down_proj", 512, 192, "adapts model.layers.4.mlp.down_proj, which the model lacks"),
        ("model.layers.0.self_attn.qkv_proj", 192, 576, "adapts model.layers.0.self_attn.qkv_proj, which"),
        ("transformer.h.0.attn.c_attn", 192, 576, "adapts transformer.h.0.attn.c_attn, which the model lacks"),
    ],
)
def test_no_layer_of_an_adapter_may_be_another_models(
    module: str, inputs: int, outputs: int, words: str, tmp_path: Path
) -> None:
    """An extended vocabulary, other head sizes, a narrower MLP: vLLM would copy only a part, or skip the layer."""
    write_peft(tmp_path / "mine")
    file = tmp_path / "mine" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = f"base_model.model.{module}.lora"
    tensors |= {f"{name}_A.weight": torch.zeros(2, inputs), f"{name}_B.weight": torch.zeros(outputs, 2)}
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=rf"does not fit embedded: .*{words}"):
        policies(str(tmp_path / "mine"))
    ref = AdapterRef(name="mine", version=0, path=tmp_path / "mine", sha256="", rank=2)
    with pytest.raises(AdapterError, match=words):
        refuse_misfits([ref], "embedded", MODEL_CONFIG)


def test_an_adapter_that_vllm_would_leave_out_is_refused(tmp_path: Path) -> None:
    """vLLM implements StarCoder's `c_attn` with a different layer, so it would measure the base model."""
    config, name = tiny_config("gpt_bigcode"), "base_model.model.transformer.h.0.attn.c_attn.lora"
    write_peft(tmp_path / "mine", target_modules=["c_attn"])
    tensors = {f"{name}_A.weight": torch.zeros(2, 64), f"{name}_B.weight": torch.zeros(128, 2)}
    save_file(tensors, tmp_path / "mine" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"^--adapter .*mine: vLLM serves no adapter of c_attn .*: merge it into"):
        find_policies([str(tmp_path / "mine")], "M", config)
    ref = AdapterRef(name="mine", version=0, path=tmp_path / "mine", sha256="", rank=2)
    with pytest.raises(ValueError, match="c_attn"):
        refuse_misfits([ref], "M", config)


def test_layers_that_an_adapter_names_but_lacks_are_reported(tmp_path: Path) -> None:
    """The file is incomplete. PEFT warns about it; vLLM silently serves the base model for those layers."""
    write_peft(tmp_path / "whole")
    write_peft(tmp_path / "half", layers=3, target_modules=["q_proj", "query_key_value"])
    write_peft(tmp_path / "meant", layers=3, layers_to_transform=[0, 1, 2])
    write_peft(tmp_path / "one", layers=1, layers_to_transform=0)
    whole, half, *meant = policies(*(str(tmp_path / name) for name in ("whole", "half", "meant", "one")))
    told = "no weights for 1 of the layers that adapter_config.json names (model.layers.3.self_attn.q_proj for one): "
    assert [told in " ".join(one.remarks) for one in (whole, half, *meant)] == [False, True, False, False]
    with pytest.warns(UserWarning, match=r"missing adapter keys.*model.layers.3.self_attn.q_proj"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR), str(tmp_path / "half"))


def test_adapters_in_a_trainers_directory_are_named(tmp_path: Path) -> None:
    for step in (90, 100):
        write_peft(tmp_path / f"checkpoint-{step}")
    words = rf"give {tmp_path}/checkpoint-100, or another of the 2 adapters in it"
    with pytest.raises(AdapterError, match=words):
        policies(str(tmp_path))
    with pytest.raises(ConfigError, match=words):
        check_start(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=words):
        directories(tmp_path)


def test_adapters_of_one_name_or_damaged_ones_are_refused(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(AdapterError, match="NAME=DIR"):
        policies(str(adapter), str(adapter))
    with pytest.raises(AdapterError, match="'base'"):
        policies(f"base={adapter}")
    with pytest.raises(AdapterError, match="no such directory"):
        policies(str(tmp_path / "nothing"))
    for unset in ("", "mine="):
        with pytest.raises(AdapterError, match=f"--adapter '{unset}' names no directory"):
            policies(unset)
    with pytest.raises(AdapterError, match="give it as --model"):
        policies(str(EMBEDDED_DIR))
    shutil.copytree(adapter, tmp_path / "damaged")
    with (tmp_path / "damaged" / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(AdapterError, match="sha256 differs"):
        policies(str(tmp_path / "damaged"))
    write_peft(tmp_path / "brief")
    (tmp_path / "brief" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    with pytest.raises(AdapterError, match=r"brief: adapter_config\.json has no target_modules, and vLLM asks for it"):
        policies(str(tmp_path / "brief"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("embedded", "/elsewhere/rollout/embedded", True),
        ("Qwen/Qwen3-8B-Base", "/models/Qwen3-8B-Base", True),
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B", False),
        ("Qwen/Qwen3-8B", "/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/0a1b2c", True),
        ("/cache/models--Qwen--Qwen3-8B/snapshots/0a1b2c", "/cache/models--me--mine/snapshots/0a1b2c", False),
    ],
)
def test_models_are_the_same_as_far_as_names_tell(one: str, other: str, same: bool) -> None:
    assert same_model(one, other) is same
