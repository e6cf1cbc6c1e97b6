"""What vLLM cannot serve is refused in one line, before anything is loaded."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
from transformers import AutoConfig
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from rollout.servable import CPU_HEAD_SIZES, check_servable, context_length, keeps_states, why_not
from tests.helpers.families import families, tiny_config

WRAPPERS = ("gemma3", "gemma4", "qwen3_5", "mistral3", "llama4")


def test_head_sizes_are_those_of_vllms_cpu_build() -> None:
    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


@pytest.mark.parametrize(
    ("kind", "sizes", "words"),
    [
        ("llama", {"hidden_size": 64, "num_attention_heads": 4}, "has attention heads of size 16, .* serves 32, 64"),
        ("qwen3", {"head_dim": 48}, "has attention heads of size 48"),
        ("mixtral", {}, "is a mixture of experts"),
        ("deepseek_v3", {}, "is a mixture of experts"),
        ("gpt_oss", {}, "is a mixture of experts"),
        ("gemma4_text", {"head_dim": 48}, "has attention heads of size 48, 512, "),
        *((kind, {}, f"is of type {kind}, .* torchvision") for kind in WRAPPERS),
    ],
)
def test_it_is_refused_in_one_line(
    kind: str, sizes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"^M {words}") as caught:
        check_servable(AutoConfig.for_model(kind, **sizes), "M", adapter=True)
    assert "\n" not in str(caught.value)


def test_others_are_not() -> None:
    for kind in ("llama", "phi", "olmo2", "starcoder2", "gemma2", "granite", "gpt2", "deepseek_v2"):
        check_servable(AutoConfig.for_model(kind), "M", adapter=kind != "deepseek_v2")
    check_servable(AutoConfig.for_model("mixtral"), "M", adapter=False)


def test_the_context_of_every_family_is_known() -> None:
    lengths = {kind: context_length(tiny_config(kind)) for kind in families()}
    unlimited = {kind for kind, length in lengths.items() if length == sys.maxsize}
    assert unlimited <= {"bloom", "mamba", "mamba2", "falcon_mamba", "nemotron_h", "recurrent_gemma"}, unlimited
    assert context_length(AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 512})) == 512


def test_which_families_keep_states() -> None:
    assert all(keeps_states(AutoConfig.for_model(kind)) for kind in ("jamba", "falcon_h1", "lfm2", "mamba", "qwen3_5"))
    assert not any(keeps_states(AutoConfig.for_model(kind)) for kind in ("llama", "gemma3", "phi", "deepseek_v3"))


def test_what_vllm_says_is_one_line() -> None:
    error = ValueError("1 validation error for VllmConfig\n  Assertion failed, no. [type=x, input=y]\n    See …")
    assert str(why_not(error, "M")) == (
        "vLLM cannot serve M here: 1 validation error for VllmConfig Assertion failed, no."
    )
