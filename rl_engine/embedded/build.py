"""Nothing → the embedded model: random weights, then a supervised warm start on generated examples.

    python -m rl_engine.embedded.build [--output DIR] [--steps N] [--seed S]

Most examples show the answer at once, the others work it out line by line, and nothing tells the two apart:
a model this small cannot add five numbers in one go, but it can add two. So it starts with the habit of
guessing, mostly wrong, and with a way of working that mostly succeeds. Held-out expressions are never shown.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rl_engine.embedded import MODEL_DIR
from rl_engine.embedded.tokenizer import END, VOCABULARY, build_tokenizer
from rollout.arithmetic import Expression, expressions

DIRECT_SHARE = 0.65
BATCH = 96
PEAK_RATE = 2e-3
IGNORED = -100


def new_model() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(VOCABULARY),
            hidden_size=192,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=64,
            intermediate_size=512,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (token ids, labels), both [B, T]; labels are `IGNORED` on the problem and on padding."""
    rng = random.Random(seed)
    stream = expressions("train", seed)
    while True:
        rows = []
        for expression in itertools.islice(stream, BATCH):
            answer = expression.direct() if rng.random() < DIRECT_SHARE else expression.worked()
            prompt = tokenizer.encode(f"{expression.text}=?\n")
            rows.append((prompt, [*tokenizer.encode(answer), 1]))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.zeros(BATCH, width, dtype=torch.long)
        labels = torch.full((BATCH, width), IGNORED)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        yield ids, labels


@torch.inference_mode()
def accuracy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, style: str, count: int = 256) -> float:
    """Greedy accuracy on held-out expressions when the first token fixes the style of the answer.

    `direct` forces the box, `worked` forces the first term of the first line, `free` leaves the choice.
    """
    chosen: list[Expression] = list(itertools.islice(expressions("held_out", 1), count))
    forced = {"direct": "\\boxed{", "worked": None, "free": ""}[style]
    right = 0
    by_length: dict[int, list[tuple[list[int], Expression]]] = {}
    for expression in chosen:
        start = f"{expression.terms[0]}" if forced is None else forced
        ids = tokenizer.encode(f"{expression.text}=?\n{start}")
        by_length.setdefault(len(ids), []).append((ids, expression))
    for group in by_length.values():
        prompts = torch.tensor([ids for ids, _ in group])
        output = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=80, do_sample=False
        )
        for row, (_, expression) in zip(output, group, strict=True):
            text = tokenizer.decode(row.tolist()).split(END)[0]
            right += text.endswith(expression.direct())
    return right / count


def build(
    output: Annotated[Path, typer.Option(help="Where the checkpoint is written.")] = MODEL_DIR,
    steps: Annotated[int, typer.Option(min=1, help="Batches of the warm start.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the examples.")] = 0,
) -> None:
    """Make the embedded model from nothing."""
    torch.manual_seed(seed)
    tokenizer, model = build_tokenizer(), new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50) * (1 - step / steps))
    start = time.monotonic()
    loss = torch.tensor(0.0)
    for step, (ids, labels) in track(zip(range(steps), batches(tokenizer, seed)), total=steps, disable=None):
        logits = model(input_ids=ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            model.eval()
            print(f"{step+1} {loss.item():.4f} {time.monotonic()-start:.0f}s", {s: accuracy(model, tokenizer, s) for s in ("direct", "worked", "free")}, flush=True)
            model.train()
    # Stored in half the size: bfloat16 values load into float32 exactly, so this is the model, not a copy of it.
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    model.float().eval()
    figures = {style: accuracy(model, tokenizer, style) for style in ("direct", "worked", "free")}
    (output / "made.json").write_text(
        json.dumps({"steps": steps, "seed": seed, "loss": loss.item(), "held_out_accuracy": figures}, indent=2) + "\n"
    )
    sys.stdout.write(f"{output}: {figures}, {time.monotonic() - start:.0f} s\n")


if __name__ == "__main__":
    typer.run(build)
