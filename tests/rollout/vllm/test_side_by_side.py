"""Several adapters of one engine in one batch: each gives what PEFT gives, unaffected by the others."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings
from rollout.models import EMBEDDED_DIR
from rollout.types import BASE, AdapterRef, Problem, Prompt
from tests.helpers.forked import CONTEXT, fork

pytestmark = pytest.mark.engine
RANKS = (1, 8, 64)
SAMPLING = SamplingConfig(n=4, temperature=1.0, max_tokens=20)
GAP = 1e-4
"""The largest gap, in nats, between two float32 implementations."""


def sample(refs: list[AdapterRef | None], prompts: list[Prompt], seeds: list[list[str]], answer: Connection) -> None:
    """Runs in a process of its own, because closing this engine here would also end the session's."""
    from rollout.vllm.engine import VllmEngine

    engine = VllmEngine(
        EngineSettings(
            model=str(EMBEDDED_DIR),
            dtype="float32",
            max_model_len=128,
            lora_rank=max(RANKS),
            max_loras=len(RANKS),
            max_num_seqs=64,
            kv_cache_gib=0.25,
        )
    )
    for adapter in filter(None, dict.fromkeys(refs)):
        engine.load_adapter(adapter)
    batches = []
    # The batches begin one after the other, so that rows of different adapters and lengths share every step.
    for ref, own in zip(refs, seeds, strict=True):
        batches.append(engine.begin(prompts, SAMPLING, ref, own))
        engine.advance()
    while not all(batch.done for batch in batches):
        engine.advance()
    answer.send([batch.groups() for batch in batches])
    engine.close()


def adapted(rank: int, root: Path) -> tuple[Any, AdapterRef | None]:
    """A random adapter of attention, feed-forward and head: the PEFT model that computes it, and the published
    version."""
    torch.manual_seed(rank)
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32).eval()
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head"][: 3 if rank == 8 else 6]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about adapting the head because it is tied to the input embedding
        model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=32, target_modules=targets)).eval()
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.01)
        write = lambda directory: model.save_pretrained(str(directory))  # noqa: E731
        return model, AdapterStore(root / str(rank), name=f"rank{rank}").publish(0, write, {"rank": rank})


def logprobs(model: Any, prompt: Prompt, tokens: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt.token_ids, *tokens]])).logits[0].double()
    start = len(prompt.token_ids) - 1
    found = logits[start:-1].log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
    return [float(value) for value in found.squeeze(1)]


def test_rows_of_several_adapters_and_of_none(tokenizer: Any, tmp_path: Path) -> None:
    texts = ("3+4=", "17-5+2-11=", "1+2+3+4+5=")
    prompts = [
        Prompt(problem=Problem(id=text, text=text, answer=""), text=text, token_ids=tuple(tokenizer(text).input_ids))
        for text in texts
    ]
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32).eval()
    served = [*(adapted(rank, tmp_path) for rank in RANKS), (base, None)] * 2
    seeds = [[f"{turn}/{text}" for text in texts] for turn in range(len(served))]
    here, there = CONTEXT.Pipe()
    process = fork(sample, [ref for _, ref in served], prompts, seeds, there)
    process.start()
    there.close()
    assert here.poll(240), "no answer came"
    batches = here.recv()
    process.join(60)
    moved = 0.0
    for (model, ref), groups in zip(served, batches, strict=True):
        for group in groups:
            for completion in group.completions:
                assert completion.adapter == (ref.key if ref else BASE)
                expected = logprobs(model, group.prompt, completion.token_ids)
                assert furthest(expected, completion.logprobs) < GAP, ref
                if ref is not None:
                    moved = max(
                        moved, furthest(logprobs(base, group.prompt, completion.token_ids), completion.logprobs)
                    )
    assert moved > 100 * GAP


def furthest(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(p - q) for p, q in zip(one, other, strict=True))
