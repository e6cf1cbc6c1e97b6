"""The merged model of a release equals PEFT's, and what rounding loses is counted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from evals.protocol.training_protocol import training_protocol
from rl_engine.merge.weights import TIED_WHEN_SERVED, _untie, merge
from rl_engine.policy.lora.adapter import LoraPolicy
from rl_engine.push.release import files_of
from rl_engine.run.trained_adapter import read_trained
from rollout.models import EMBEDDED_DIR
from tests.helpers.families import tiny_wrapper
from tests.helpers.hub_standin import Hub
from tests.helpers.precision import LOGPROB_NATS, assert_same_sums
from tests.helpers.releases import execute, logprobs, published, snippets, table
from tests.helpers.run_directories import trained_run


def test_the_merged_model_is_pefts_and_speaks_like_the_adapter(
    hub: Hub, run: Path, trained: tuple[Path, LoraPolicy]
) -> None:
    *_, code = published(run, "--merged", "--merged-dtype", "float32")
    assert "ignore_patterns" in snippets(table(run / "release/v000003"))[1]
    merged = execute(code)["model"]
    reference = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32), run / "adapters/v000003"
    ).merge_and_unload()
    wanted = reference.state_dict()
    for name, tensor in merged.state_dict().items():
        assert_same_sums(tensor, wanted[name], 2 + 2)  # of rank 2
    ids = torch.tensor([[11, 12, 5, 13, 7, 8, 3]])
    learner = trained[1].model
    torch.testing.assert_close(logprobs(merged, ids), logprobs(learner, ids), rtol=0, atol=LOGPROB_NATS)
    with learner.disable_adapter():
        assert (logprobs(merged, ids) - logprobs(learner, ids)).abs().max() > 0.1
    assert "added in float32, and stored as they are." in table(run / "release/v000003")
    folder = run / "release/v000003/merged"
    # The mode that the umask gives: safetensors' files are their owner's alone.
    assert len({path.stat().st_mode for path in folder.iterdir() if path.is_file()}) == 1
    assert AutoTokenizer.from_pretrained(folder).chat_template
    asked, own = training_protocol(folder), training_protocol(run / "release/v000003")
    assert asked is not None
    assert own is not None
    assert asked == replace(own, origin=folder / "run/config.yaml")
    for path in files_of(folder):
        assert str(EMBEDDED_DIR.parent).encode() not in (folder / path).read_bytes()


def test_what_rounding_loses_is_counted_weight_by_weight(run: Path, tmp_path: Path) -> None:
    adapter = read_trained(run / "adapters/latest", None)
    found = merge(adapter, "bfloat16", tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32).state_dict()
    exact = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32), run / "adapters/v000003"
    ).merge_and_unload()
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    names = [name for name in base if re.search(r"(q|k|v|o|gate|up|down)_proj\.weight", name)]
    updates = torch.cat([(exact.state_dict()[name] - base[name]).flatten() for name in names])
    errors = torch.cat([(stored[name].float() - exact.state_dict()[name]).flatten() for name in names])
    kept = torch.cat([(stored[name] == base[name].bfloat16()).flatten() for name in names])
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    assert found.update_mean == pytest.approx(updates.abs().mean().item(), rel=1e-3)
    assert found.update_max == pytest.approx(updates.abs().max().item(), rel=1e-3)
    assert found.error_mean == pytest.approx(errors.abs().mean().item(), rel=1e-3)
    assert found.error_max == pytest.approx(errors.abs().max().item(), rel=1e-3)
    assert found.lost_frac == pytest.approx(kept.float().mean().item(), rel=1e-2)
    assert 0 < found.error_mean < found.update_mean


def test_an_update_of_a_tied_output_leaves_the_input_alone(tmp_path: Path) -> None:
    """If output and input embeddings are tied, merging unties them."""
    learner = trained_run(tmp_path / "run", "lora.targets=all+lm_head").model
    merge(read_trained(tmp_path / "run/adapters/latest", None), "float32", tmp_path / "merged")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert not torch.equal(merged.get_output_embeddings().weight, base.get_output_embeddings().weight)
    ids = torch.tensor([[11, 12, 5, 13, 7, 8, 3]])
    torch.testing.assert_close(logprobs(merged, ids), logprobs(learner, ids), rtol=0, atol=LOGPROB_NATS)


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_both_parts_of_a_merged_wrapper_say_what_is_apart(kind: str, tmp_path: Path) -> None:
    """vLLM reads the language model's part of the configuration, transformers the whole."""
    model = tiny_wrapper(kind)
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = True
    model.tie_weights()
    head = model.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight
    _untie(model, head)
    head.weight.data += 1
    model.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert stated["tie_word_embeddings"] is False
    assert stated["text_config"]["tie_word_embeddings"] is False
    loaded: Any = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight + 1)


@pytest.mark.parametrize("family", TIED_WHEN_SERVED)
def test_an_output_that_is_not_served_apart_is_not_merged(family: str) -> None:
    tied: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR)
    tied.config.model_type = family
    with pytest.raises(ValueError, match=f"which in {family} is tied to the input embedding"):
        _untie(tied, tied.get_output_embeddings())


@pytest.mark.parametrize(("name", "value"), [("bias", "all"), ("use_dora", True), ("fan_in_fan_out", True)])
def test_what_is_more_than_plain_lora_is_not_merged(run: Path, tmp_path: Path, name: str, value: Any) -> None:
    adapter = read_trained(run / "adapters/latest", None)
    adapter.peft[name] = value
    with pytest.raises(ValueError, match=f"the adapter has {name}"):
        merge(adapter, "float32", tmp_path / "merged")
