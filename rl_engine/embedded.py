"""Nothing → the embedded model: random weights, then a supervised warm start on generated examples.

    python -m rl_engine.embedded [--output DIR] [--steps N] [--seed S]

Two thirds of the examples give the answer at once, the others work it out line by line, and nothing tells
the two apart. A model this small can add two numbers but not six in one go: so it ends with the habit of
guessing, mostly wrong, and with a way of working that mostly succeeds. Held-out expressions are never shown.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rollout.arithmetic import Expression, expressions
from rollout.config import ArithmeticConfig
from rollout.models import EMBEDDED_DIR

# What the warm start shows, and what quickstart.yaml then asks. Sums of two are what the longer ones are made of.
SHOWN = ArithmeticConfig(terms=(2, 3, 4, 5, 6), largest=20)
ASKED = ArithmeticConfig(terms=(3, 4, 5, 6), largest=20)

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
BOX = "\\boxed{"
VOCABULARY = (PAD, END, UNKNOWN, "\n", " ", "+", "-", "=", "?", BOX, "}", *"0123456789")
PAD_ID, END_ID = 0, 1
# The prompt is the problem on a line of its own; the completion starts on the next.
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{{ '\\n' }}{% endfor %}"

DIRECT_SHARE = 0.65
BATCH = 96
PEAK_RATE = 2e-3
IGNORED = -100


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and one for `\\boxed{`."""
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def build_model() -> Qwen3ForCausalLM:
    """1.8 million random parameters in the shape of Qwen3."""
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
            pad_token_id=PAD_ID,
            bos_token_id=None,
            eos_token_id=END_ID,
        )
    )


def examples(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs of the train split, the answer in one of the two styles."""
    rng = random.Random(seed)
    for expression in expressions("train", seed, SHOWN.terms, SHOWN.largest):
        yield (
            prompt_of(expression),
            expression.direct() if rng.random() < DIRECT_SHARE else expression.worked(),
        )


def prompt_of(expression: Expression) -> str:
    return SHOWN.wording.replace("{expression}", expression.text) + "\n"


def collate(pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, labels), both [B, T]; labels are `IGNORED` on the problem and on padding."""
    rows = [(tokenizer.encode(prompt), [*tokenizer.encode(answer), END_ID]) for prompt, answer in pairs]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), PAD_ID)
    labels = torch.full((len(rows), width), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


@torch.inference_mode()
def held_out_accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, start: str, count: int = 200) -> float:
    """Greedy accuracy on held-out expressions when the answer begins with `start`.

    `{first}` in it stands for the expression's first number: the beginning of a worked answer.
    """
    chosen = list(itertools.islice(expressions("held_out", 1, ASKED.terms, ASKED.largest), count))
    by_length: dict[int, list[tuple[list[int], Expression]]] = {}
    for expression in chosen:
        ids = tokenizer.encode(prompt_of(expression) + start.replace("{first}", str(expression.terms[0])))
        by_length.setdefault(len(ids), []).append((ids, expression))
    right = 0
    for group in by_length.values():
        prompts = torch.tensor([ids for ids, _ in group])
        output = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=72, do_sample=False)
        for row, (_, expression) in zip(output, group, strict=True):
            right += str(tokenizer.decode(row.tolist())).split(END)[0].endswith(expression.direct())
    return right / count


def build(
    output: Annotated[Path, typer.Option(help="Where the checkpoint is written.")] = EMBEDDED_DIR,
    steps: Annotated[int, typer.Option(min=1, help="Batches of the warm start.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the examples.")] = 0,
) -> None:
    """Make the embedded model from nothing."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model: Any = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50) * (1 - step / steps))
    stream = examples(seed)
    start, loss = time.monotonic(), torch.tensor(0.0)
    for _ in track(range(steps), description="warm start"):
        ids, labels = collate(list(itertools.islice(stream, BATCH)), tokenizer)
        logits = model(input_ids=ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    # bfloat16 values load into float32 exactly: half the size, and the figures below are of what is stored.
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    model.float().eval()
    starts = {"free": "", "direct": BOX, "worked": "{first}"}
    made = {
        "steps": steps,
        "seed": seed,
        "loss": loss.item(),
        "held_out_accuracy": {style: held_out_accuracy(model, tokenizer, text) for style, text in starts.items()},
    }
    (output / "made.json").write_text(json.dumps(made, indent=2) + "\n")
    Console().print(f"{output}, made in {time.monotonic() - start:.0f} s:", made)


if __name__ == "__main__":
    typer.run(build)
