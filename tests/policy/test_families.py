"""Every family of text models that transformers has and vLLM serves: the learner's log-probabilities match the model's
own forward pass, or the family is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rl_engine.config import LoraConfig, load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.policy.agreement import DisagreementError, check_agreement, check_with_prompts, own_logprobs
from rl_engine.policy.base_model import (
    choose_attention,
    load_meta_model,
    load_model_config,
    load_weights,
    model_notes,
    noise_of,
    published_config,
)
from rl_engine.policy.full import compute_in, masters_of, write_model
from rl_engine.policy.logits import PLAIN
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.lora.adapter import add_adapter
from rl_engine.train.assemble import check_context
from rollout.config import ModelConfig
from rollout.models import EMBEDDED_DIR
from tests.conftest import ConfigMaker
from tests.helpers.families import VOCABULARY, families, tiny_model, tiny_wrapper

AGREEMENT = 1e-4
"""Nats, for float32 logits between one and ten in size."""
SAMPLE = TrainingSample(
    prompt_ids=(5,), completion_ids=tuple(range(6, 40)), behaviour_logprobs=(0.0,) * 34, advantage=1.0
)
# Heads with several layers (the BERTs, ModernBERT) and a truncated vocabulary (Inkling): refused with an error.
REFUSED = {
    *("bert", "camembert", "data2vec-text", "electra", "ernie", "roberta", "roberta-prelayernorm", "roc_bert"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod", "modernbert-decoder", "inkling_text"),
}


def verdict(kind: str) -> str:
    """The results of the start-up check on a tiny random model, and of a comparison at this file's own tolerance."""
    policy = LogprobModel(tiny_model(kind), temperature=0.7)
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    try:
        check_agreement(policy, batch, kind)
    except DisagreementError as error:
        return "refused" if "family" in str(error) and "\n" not in str(error) else str(error)
    expected = own_logprobs(policy.eval(), batch)
    apart = float((policy.train()(batch)[0].detach() - expected).abs().max())
    return "agrees" if apart < AGREEMENT and expected.std() > 0.05 else f"{apart:.2g} nats apart"


def test_every_familys_logprobs_match_or_it_is_refused() -> None:
    found = {kind: verdict(kind) for kind in families()}
    assert len(found) > 100
    assert found == {kind: "refused" if kind in REFUSED else "agrees" for kind in found}


@pytest.mark.parametrize("targets", ["all", "all+lm_head"])
@pytest.mark.parametrize("kind", ["granite", "cohere", "gemma2", "phi"])
def test_gradients_match_the_models_own_logits(kind: str, targets: str) -> None:
    """Gradients of log-probabilities and entropies, through a frozen and through an adapted output embedding."""
    adapted, _ = add_adapter(tiny_model(kind), LoraConfig(rank=2, targets=targets), seed=0)
    learned = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    for parameter in learned:
        torch.nn.init.normal_(parameter, std=0.1)
    policy = LogprobModel(adapted.get_base_model(), temperature=0.7, learn_entropy=True)
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    inputs = batch.model_inputs(policy.causal_lm.config)
    logits_NV = policy.causal_lm(**inputs).logits[0].index_select(0, batch.source_N) / 0.7
    all_NV = logits_NV.log_softmax(dim=-1)
    expected = all_NV.gather(1, batch.target_N[:, None]).squeeze(1), -(all_NV.exp() * all_NV).sum(dim=1)
    found = policy(batch)
    weights = torch.linspace(-1, 1, len(batch.target_N))
    for mine, own in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, own, atol=AGREEMENT, rtol=0)
        gradients = torch.autograd.grad((mine * weights).sum(), learned, retain_graph=True)
        wanted = torch.autograd.grad((own * weights).sum(), learned, retain_graph=True)
        for gradient, other in zip(gradients, wanted, strict=True):
            # Sums of terms of both signs: rounding is relative to the largest term, not to their sum.
            torch.testing.assert_close(gradient, other, atol=1e-4 * float(other.abs().max()), rtol=0)


def test_a_router_setting_used_in_evaluation_is_kept(tmp_path: Path) -> None:
    """PhiMoE's jitter decides which experts are combined, so without it the model is another one. vLLM uses 0.01."""
    model = tiny_model("phimoe")
    model.config.router_jitter_noise = 0.01
    model.config.attention_dropout = 0.25
    for layer in model.model.layers:
        layer.mlp.router.router_jitter_noise = 0.01
    model.save_pretrained(tmp_path)
    loaded = load_weights(ModelConfig(name=str(tmp_path), dtype="float32"), "sdpa")
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    found, expected = (own_logprobs(LogprobModel(one, 1.0).eval(), batch) for one in (loaded, model))
    torch.testing.assert_close(found, expected, atol=AGREEMENT, rtol=0)
    assert loaded.config.attention_dropout == 0


@pytest.mark.parametrize("kind", ["gemma2", "vaultgemma"])
def test_scores_that_the_sampler_caps_are_capped(kind: str, tmp_path: Path) -> None:
    """torch's fused attention omits the soft cap, vLLM does not. A small cap makes the difference visible."""
    model = tiny_model(kind)
    model.config.attn_logit_softcapping = 0.5
    model.save_pretrained(tmp_path)
    source = ModelConfig(name=str(tmp_path), dtype="float32")
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    found = own_logprobs(LogprobModel(load_weights(source, "sdpa"), 1.0), batch)
    eager = load_weights(source, "eager")
    torch.testing.assert_close(found, own_logprobs(LogprobModel(eager, 1.0), batch), atol=AGREEMENT, rtol=0)
    eager.set_attn_implementation("sdpa")
    assert float((own_logprobs(LogprobModel(eager, 1.0), batch) - found).abs().max()) > 0.01


def test_a_window_is_as_wide_as_the_samplers(tmp_path: Path) -> None:
    """vLLM's Cohere 2 looks back at one position more than its configuration says: seen, they were 1 nat apart."""
    model = tiny_model("cohere2")
    model.config.sliding_window = 8
    model.save_pretrained(tmp_path)
    source = ModelConfig(name=str(tmp_path), dtype="float32")
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    found = own_logprobs(LogprobModel(load_weights(source, "sdpa"), 1.0).eval(), batch)
    narrow = own_logprobs(LogprobModel(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), 1.0), batch)
    wide_model = AutoModelForCausalLM.from_pretrained(tmp_path, sliding_window=9).eval()
    torch.testing.assert_close(found, own_logprobs(LogprobModel(wide_model, 1.0), batch), atol=AGREEMENT, rtol=0)
    assert float((found - narrow).abs().max()) > 0.01
    assert published_config(source).sliding_window == 8


def test_a_family_without_sdpa_is_loaded_with_eager(tmp_path: Path) -> None:
    """GPT-OSS is an example; both the run and its memory estimate use eager attention."""
    tiny_model("gpt_oss").save_pretrained(tmp_path)
    loaded = load_weights(ModelConfig(name=str(tmp_path), dtype="float32"), "sdpa")
    assert loaded.config._attn_implementation == "eager"
    assert choose_attention(load_config("quickstart.yaml"), "padded", loaded.config, "cuda") == "eager"


@pytest.mark.parametrize("kind", ["opt", "phimoe", "dbrx"])
def test_dropout_and_jitter_are_off_but_stay_in_the_config(kind: str, tmp_path: Path) -> None:
    """OPT has dropout in its layers, PhiMoE samples experts in training mode, DBRX has its rates in nested configs."""
    model = tiny_model(kind)
    for part in (model.config, *filter(None, (getattr(model.config, name, None) for name in ("attn_config",)))):
        for name in ("dropout", "attention_dropout", "router_jitter_noise", "attn_pdrop"):
            if hasattr(part, name):
                setattr(part, name, 0.25)
    model.save_pretrained(tmp_path)
    source = ModelConfig(name=str(tmp_path), dtype="float32")
    stated = noise_of(load_model_config(source))
    assert set(stated.values()) >= {0.25}
    (note,) = model_notes(source)
    assert "0.25" in note
    loaded = load_weights(source, "sdpa")
    assert noise_of(loaded.config) == {}
    assert noise_of(published_config(source)) == stated
    loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = LogprobModel(loaded, 1.0)
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    expected, _ = policy.eval()(batch)
    torch.testing.assert_close(policy.train()(batch)[0], expected, atol=AGREEMENT, rtol=0)


def test_a_model_that_computes_something_unknown_is_refused(
    ranks: Ranks, tmp_path: Path, make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that computes something unknown is refused when the learner is created."""
    tiny_model("granite").save_pretrained(tmp_path)
    config = make_config(f"model.name={tmp_path}", "learner.layout=padded")
    Learner(config, ranks, 0, [[3, 4, 5, 6]])
    monkeypatch.setattr("rl_engine.policy.logprobs.transform_of", lambda _: PLAIN)
    with pytest.raises(DisagreementError, match=r"model.name .* type granite compute something"):
        Learner(config, ranks, 0, [[3], [3, 4, 5, 6]])


def test_weights_that_are_no_numbers_are_not_the_familys_fault() -> None:
    model = tiny_model("granite")
    model.model.layers[0].mlp.down_proj.weight.data.fill_(torch.nan)
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    with pytest.raises(DisagreementError, match=r"^model.name M: .* because its weights hold NaN or infinity"):
        check_agreement(LogprobModel(model, 1.0), batch, "M")


def test_families_that_mix_precisions_agree_or_are_refused() -> None:
    """Falcon Mamba has float32 hidden states beside bfloat16 weights; MiniMax multiplies float32 buffers by them."""
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    check_agreement(LogprobModel(tiny_model("falcon_mamba").to(torch.bfloat16), 1.0), batch, "M")
    minimax = tiny_model("minimax")
    compute_in(minimax, torch.bfloat16)
    with pytest.raises(DisagreementError, match=r"^model.name M: the learner cannot run .* minimax .* same dtype"):
        check_agreement(LogprobModel(minimax, 1.0), batch, "M")


# Stacked experts; values that no gradient reaches (DeepSeek's router, Apertus's activation); an output head that has
# another name in the files; tied embeddings.
@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3", "apertus", "gpt_neox", "gemma2"])
def test_a_whole_model_is_published_as_its_base_is(kind: str, tmp_path: Path) -> None:
    """The same names with the same values: transformers reads experts stacked too, vLLM and older versions do not."""
    model = tiny_model(kind)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.25)
    # Gemma ends a turn with another token than a text. Some checkpoints hold settings that transformers would refuse.
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base/generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature": 0.6}')
    source = ModelConfig(name=str(tmp_path / "base"), dtype="float32")
    trained = load_weights(source, "sdpa", torch.float32)
    compute_in(trained, torch.bfloat16)
    (tmp_path / "whole").mkdir()
    masters = {name: parameter.detach() for name, parameter in masters_of(trained).items()}
    write_model(
        tmp_path / "whole", trained, masters, published_config(source), AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    )
    found, expected = (load_file(tmp_path / place / "model.safetensors") for place in ("whole", "base"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert GenerationConfig.from_pretrained(tmp_path / "whole").eos_token_id == [2, 7]


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen3_5", "gemma4", "llama4"])
def test_only_a_wrappers_language_model_is_adapted(kind: str, tmp_path: Path) -> None:
    """The vision tower's layers have the same names. vLLM serves these models if torchvision is installed; with a
    stand-in for it, Gemma 3 and Mistral 3 were served with an adapter within 5e-6 nats of the learner."""
    tiny_wrapper(kind).save_pretrained(tmp_path)
    source = ModelConfig(name=str(tmp_path), dtype="float32")
    assert load_model_config(source).get_text_config().vocab_size == VOCABULARY
    model = load_weights(source, "sdpa")
    adapted, coverage = add_adapter(model, LoraConfig(rank=2, targets="all"), seed=0)
    learned = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert learned
    assert all("language_model." in path and "vision" not in path for path in (*coverage.modules, *learned))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    check_agreement(LogprobModel(model, 1.0), collate([SAMPLE], pad_id=0, layout="padded"), kind)


def test_the_check_takes_no_prompt_after_the_one_it_needs() -> None:
    """The examples of a supervised run are made into lists for it, one at a time."""
    prompts = iter([[5], [5, 6, 7], [8, 9]])
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    check_with_prompts(LogprobModel(tiny_model("llama"), 1.0), prompts, lambda _: batch, "llama")
    assert [*prompts] == [[8, 9]]


def test_full_wrappers_and_quantized_checkpoints_are_refused(make_config: ConfigMaker, tmp_path: Path) -> None:
    """Full fine-tuning of a wrapper and quantized checkpoints are refused in one line."""
    tiny_wrapper("gemma3").save_pretrained(tmp_path / "wrapper")
    with pytest.raises(ConfigError, match=r"gemma3, .* use method=lora"):
        check_context(make_config(f"model.name={tmp_path / 'wrapper'}", "method=full"), needed=10)
    shutil.copytree(EMBEDDED_DIR, tmp_path / "four_bits")
    stated = json.loads((EMBEDDED_DIR / "config.json").read_text())
    stated["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "four_bits" / "config.json").write_text(json.dumps(stated))
    with pytest.raises(ConfigError, match=r"quantized checkpoint \(bitsandbytes\), .* bfloat16") as caught:
        load_meta_model(ModelConfig(name=str(tmp_path / "four_bits")))
    assert "\n" not in str(caught.value)
