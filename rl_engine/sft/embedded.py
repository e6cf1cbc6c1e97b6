"""Nothing → the embedded model: random weights, then a supervised warm start on generated examples.

    python -m rl_engine.sft.embedded [--output DIR] [--steps N] [--seed S]

The warm start is `rl_engine.sft` on `configs/embedded.yaml`. Two thirds of its examples give the answer at once, the
others work it out line by line, and nothing in the question tells the two apart. A model this small can add two numbers
directly, but not six. So it ends up with a habit of guessing, which is mostly wrong, and a way of working, which mostly
succeeds. Held-out expressions are never shown.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from evals.command import exit_with_error
from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rl_engine.run.records import read_metrics
from rl_engine.sft.run import run_sft
from rollout.config import ArithmeticConfig
from rollout.prompts.arithmetic import SignedSum, expressions

RECIPE = "embedded.yaml"
OUTPUT = Path("runs/embedded")
"""Not the directory of the shipped model, which is replaced only if named explicitly."""
RECORD = "made.json"
# The problems of the quickstart.
QUICKSTART_SUMS = ArithmeticConfig(terms=(3, 4, 5, 6), largest=20)

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
BOX = "\\boxed{"
VOCABULARY = (PAD, END, UNKNOWN, "\n", " ", "+", "-", "=", "?", BOX, "}", *"0123456789")
PAD_ID, END_ID = 0, 1
# The prompt is the problem on a line of its own; the completion starts on the next.
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{{ '\\n' }}{% endfor %}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, and one for `\\boxed{`."""
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


def prompt_of(expression: SignedSum) -> str:
    return QUICKSTART_SUMS.wording.replace("{expression}", expression.text) + "\n"


@torch.inference_mode()
def held_out_accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, start: str, count: int = 200) -> float:
    """Greedy accuracy on held-out expressions when the answer begins with `start`.

    `{first}` in `start` stands for the expression's first number, with which a worked answer begins.
    """
    chosen = list(itertools.islice(expressions("held_out", 1, QUICKSTART_SUMS.terms, QUICKSTART_SUMS.largest), count))
    by_length: dict[int, list[tuple[list[int], SignedSum]]] = {}
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


def write_random_model(directory: Path, seed: int) -> None:
    """Write the starting point of the warm start: weights drawn from `seed`, in float32, and the tokenizer."""
    torch.manual_seed(seed)
    build_model().save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)


def warm_start(directory: Path, steps: int, seed: int) -> Path:
    """Train random weights with `configs/embedded.yaml`, below `directory`; return the run directory."""
    write_random_model(directory / "random", seed)
    overrides = (f"seed={seed}", f"data.seed={seed}", f"train.steps={steps}")
    places = (f"model.name={directory / 'random'}", f"output_dir={directory / 'run'}")
    code = run_sft(read_config(SftConfig, RECIPE, [*overrides, *places]))
    if code:
        raise typer.Exit(code)
    return directory / "run"


def check_output(output: Path) -> None:
    """Raises `ValueError` if the model would be written into a directory that holds something else."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is not a directory")
    made = output / RECORD
    if made.is_file():
        Console().print(f"replaces {output}, an earlier one", soft_wrap=True)
    elif output.exists() and any(output.iterdir()):
        raise ValueError(
            f"--output: {output} is not empty and was not written by this command (no {RECORD}), so nothing was "
            "written: give another directory"
        )


def build(
    output: Annotated[Path, typer.Option(help="Directory to write the checkpoint to.")] = OUTPUT,
    steps: Annotated[int, typer.Option(min=1, help="Number of batches in the warm start.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seeds the weights and the examples.")] = 0,
) -> None:
    """Make the embedded model from nothing."""
    try:
        check_output(output)
    except ValueError as error:
        exit_with_error(str(error), 2)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        run = warm_start(Path(scratch), steps, seed)
        model: Any = AutoModelForCausalLM.from_pretrained(run / "adapters" / "latest", dtype=torch.float32)
        last = read_metrics(run)[-1]
    # bfloat16 halves the size. Its values load into float32 exactly, so the figures below are those of the saved model.
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(output)
    model.float().eval()
    starts = {"free": "", "direct": BOX, "worked": "{first}"}
    made = {
        "steps": steps,
        "seed": seed,
        "loss": last["loss"],
        "test_log_loss": last["test/log_loss"],
        "held_out_accuracy": {style: held_out_accuracy(model, tokenizer, text) for style, text in starts.items()},
    }
    (output / RECORD).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    Console().print(f"{output}, made in {time.monotonic() - start:.0f} s:", made)


if __name__ == "__main__":
    typer.run(build)
