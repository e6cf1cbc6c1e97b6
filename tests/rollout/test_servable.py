"""Models that vLLM cannot serve are refused in one line, before anything is loaded."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm import ModelRegistry
from vllm.model_executor.models.interfaces import supports_lora
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from rl_engine.policy.lora.targets import adaptable
from rollout.servable import (
    BESIDE_SEEING,
    CPU_HEAD_SIZES,
    NOT_RELOADED,
    UNSERVED,
    WITH_HEAD,
    WITHOUT_ADAPTERS,
    check_adaptable,
    check_positions,
    check_reloadable,
    check_servable,
    context_length,
    is_mixture,
    keeps_states,
    why_not,
)
from tests.helpers.families import families, is_text, tiny_config, tiny_model

# vLLM would serve these through transformers' own classes, but fails at layers that it does not know.
TRIED = {"diffllama", "minimax", "recurrent_gemma"}
# These have no class in vLLM either: encoders, and decoders with an encoder.
NO_DECODERS = {
    *(
        "bart",
        "big_bird",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "git",
        "marian",
        "mbart",
        "megatron-bert",
    ),
    *(
        "musicgen",
        "musicgen_melody",
        "mvp",
        "pegasus",
        "plbart",
        "prophetnet",
        "rembert",
        "roformer",
        "trocr",
        "whisper",
    ),
}
WRAPPERS = ("gemma3", "gemma4", "qwen3_5", "mistral3", "llama4")


def test_head_sizes_are_those_of_vllms_cpu_build() -> None:
    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


@pytest.mark.parametrize(
    ("kind", "sizes", "words"),
    [
        ("llama", {"hidden_size": 64, "num_attention_heads": 4}, "has attention heads of size 16, .* serves 32, 64"),
        ("qwen3", {"head_dim": 48}, "has attention heads of size 48"),
        ("mixtral", {}, "is a mixture of experts, .* use method=full, or a CUDA machine"),
        ("deepseek_v3", {}, "is a mixture of experts"),
        ("gpt_oss", {}, r"is a mixture of experts, .*\): use a CUDA machine"),
        ("mpt", {}, r"is of type mpt, which vLLM 0.32 does not serve: use a model of another type"),
        ("mamba2", {}, r"is of type mamba2, which vLLM 0.32 does not serve with adapters: use method=full"),
        ("gemma3n", {}, r"is of type gemma3n, which vLLM 0.32 does not serve with adapters"),
        ("gemma4_text", {"head_dim": 48}, "has attention heads of size 48, 512, "),
        *((kind, {}, f"is of type {kind}, .* torchvision") for kind in (*WRAPPERS, "qwen3_5_text")),
    ],
)
def test_it_is_refused_in_one_line(
    kind: str, sizes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"^M {words}") as caught:
        check_servable(AutoConfig.for_model(kind, **sizes), "M", adapter=True)
    assert "\n" not in str(caught.value)


def test_models_that_vllm_reloads_in_part_are_refused_whole() -> None:
    with pytest.raises(ValueError, match=r"^M is of type gpt_oss, .* does not replace the experts .* use method=lora"):
        check_reloadable(AutoConfig.for_model("gpt_oss"), "M")
    check_reloadable(AutoConfig.for_model("mixtral"), "M")


def test_what_vllm_does_not_serve_is_listed() -> None:
    no_class, no_adapters, with_head, classes, seen = set(), set(), set(), {}, set()
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if name in ModelRegistry.models:
            classes[kind] = ModelRegistry.models[name]
        elif not getattr(transformers, name).is_backend_compatible():
            no_class.add(kind)
    for kind, served in classes.items():
        # Without torchvision, wrappers cannot be inspected, nor can classes in the same module.
        with contextlib.suppress(ModuleNotFoundError):
            model_class = served.load_model_cls()
            seen.add(kind)
            if not supports_lora(model_class):
                no_adapters.add(kind)
            elif "lm_head" in model_class.embedding_modules and is_text(kind):
                with_head.add(kind)
    assert no_class - NO_DECODERS == UNSERVED - TRIED
    assert classes.keys().isdisjoint(UNSERVED)
    assert no_adapters <= WITHOUT_ADAPTERS
    assert {kind for kind in WITHOUT_ADAPTERS if kind in classes and is_text(kind)} <= no_adapters
    assert with_head == WITH_HEAD & seen
    if importlib.util.find_spec("torchvision") is None:
        assert {kind for kind in classes.keys() - seen if is_text(kind)} - WITHOUT_ADAPTERS == BESIDE_SEEING
    taken = classes["glm4"].load_model_cls().packed_modules_mapping["gate_up_proj"]
    assert taken == ["gate_proj", "up_proj"]


def test_layers_that_vllm_splits_are_reported_with_the_others() -> None:
    """vLLM would refuse the first adapter, at length, after everything is loaded."""
    paths = [path for path in adaptable(tiny_model("glm4")) if path.endswith(("q_proj", "gate_up_proj", "down_proj"))]
    with pytest.raises(ValueError, match=r"^lora.targets: .* of gate_up_proj in .* others, \[down_proj, q_proj\]$"):
        check_adaptable(tiny_config("glm4"), paths, "lora.targets")
    with pytest.raises(ValueError, match=r"of c_attn in .* others, \[c_fc, c_proj\]$"):
        check_adaptable(tiny_config("gpt_bigcode"), adaptable(tiny_model("gpt_bigcode")), "lora.targets")
    with pytest.raises(ValueError, match=r"^--adapter A: .* of c_attn .* in its place: merge it$"):
        check_adaptable(tiny_config("gpt_bigcode"), ["transformer.h.0.attn.c_attn"], "--adapter A", "merge it")
    for kind in ("deepseek_v3", "glm4_moe_lite"):
        with pytest.raises(ValueError, match=r"of kv_b_proj in .* two matrices .* give the others, \[o_proj\]$"):
            check_adaptable(tiny_config(kind), ["layers.0.self_attn.kv_b_proj", "layers.0.self_attn.o_proj"], "K")
    check_adaptable(tiny_config("minicpm3"), ["model.layers.0.self_attn.kv_b_proj"], "lora.targets")
    check_adaptable(tiny_config("glm4"), ["model.layers.0.mlp.down_proj"], "lora.targets")
    check_adaptable(tiny_config("phi3"), ["model.layers.0.mlp.gate_up_proj"], "lora.targets")


def test_an_output_embedding_without_adapters_is_reported() -> None:
    """Qwen2, Mistral and Gemma are among them. vLLM would say so at length, after everything is loaded."""
    for kind in ("qwen2", "mistral", "gemma3"):
        with pytest.raises(
            ValueError, match=rf"^lora.targets: .* of lm_head in .* {kind}: give the others, \[q_proj\]$"
        ):
            check_adaptable(AutoConfig.for_model(kind), ["model.layers.0.q_proj", "lm_head"], "lora.targets")
    check_adaptable(AutoConfig.for_model("qwen3"), ["model.layers.0.q_proj", "lm_head"], "lora.targets")


def test_room_for_longer_texts_than_short_factors_are_for() -> None:
    """For all shorter texts, vLLM and transformers would use different factors of Phi-4-mini."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    small = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    phi = AutoConfig.for_model("phi3", **small, rope_parameters=rope)
    check_positions(phi, "M", 4096)
    with pytest.raises(
        ValueError, match=r"^prompt .* 4,097 tokens, and M uses other RoPE factors beyond 4,096 \(longrope\)"
    ):
        check_positions(phi, "M", 4097)
    check_positions(AutoConfig.for_model("llama"), "M", 10**6)


def test_others_are_not() -> None:
    for kind in ("llama", "phi", "olmo2", "starcoder2", "gemma2", "granite", "gpt2", "deepseek_v2"):
        check_servable(AutoConfig.for_model(kind), "M", adapter=kind not in ("deepseek_v2", "gpt2"))
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
    # A model saved without its head, as one that gives embeddings. Of a real one hundreds of names would follow.
    error = ValueError("There is no module named 'norm' in L. The available parameters belonging to L are: {'m.norm'}")
    assert str(why_not(error, "M")) == (
        "vLLM cannot serve M here: There is no module named 'norm' in L. If transformers loads the model, its "
        "save_pretrained writes the names that vLLM knows."
    )


def test_the_table_of_the_page_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]*\((`[a-z].*?)\) \| (.*?) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    shown = {kind: row for kinds, *row in rows for kind in re.findall(r"`(.+?)`", kinds)}
    assert {"llama", "qwen3", "gpt_oss", "mamba"} <= set(shown)
    for kind, (adapter, head, full) in shown.items():
        assert kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, kind
        assert kind not in UNSERVED | BESIDE_SEEING, kind
        assert (adapter == "no") == (kind in WITHOUT_ADAPTERS), kind
        assert (adapter == "on CUDA") == (is_mixture(AutoConfig.for_model(kind)) and adapter != "no"), kind
        assert (head == "yes") == (kind in WITH_HEAD), kind
        assert (full == "yes") == (kind not in NOT_RELOADED), kind


def test_a_model_without_experts_may_state_a_number_of_them() -> None:
    """Doge and dense Nemotron-H were refused on a CPU, where they train."""
    dense = {"layers_block_type": ["mamba", "mlp", "attention", "mlp"]}
    assert is_mixture(AutoConfig.for_model("doge", is_moe=True))
    assert not is_mixture(AutoConfig.for_model("doge"))
    assert is_mixture(AutoConfig.for_model("nemotron_h"))
    assert not is_mixture(AutoConfig.for_model("nemotron_h", **dense))
