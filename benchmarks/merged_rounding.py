"""What is lost when an adapter is merged into bfloat16 weights instead of being served separately.

    python -m benchmarks.merged_rounding RUN_DIR [--adapter DIR] [--rows 64]

Serving W' = bfloat16(W + ΔW), recomputed from the original W at each step, would save a sampler the adapter's own
products. The run's completions are scored with its adapter in four ways: in float32 (what is meant), live in bfloat16,
merged in bfloat16, and in float32 with W' (the rounding of the weights alone). A sampler that serves W' is as far from
the learner, which computes live, as the third is from the second.
"""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl_engine.config import load_config
from rollout.models import locate_model

BF16, FP32 = torch.bfloat16, torch.float32


def tokens_of(run: Path, rows: int) -> list[tuple[list[int], int]]:
    """(token ids, length of the prompt) of the run's last completions."""
    last = sorted((run / "rollouts").glob("step*.jsonl.gz"))[-1]
    with gzip.open(last, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in itertools.islice(file, rows)]
    return [(line["prompt_ids"] + line["completion_ids"], len(line["prompt_ids"])) for line in lines]


@torch.no_grad()
def logprobs(model: Any, rows: list[tuple[list[int], int]]) -> Tensor:
    """Log-probabilities of all completion tokens in all rows, in nats, float64."""
    found = []
    for ids, prompt in rows:
        logits = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(dim=-1)
        found.append(logits.gather(1, torch.tensor(ids[1:])[:, None])[prompt - 1 :, 0])
    return torch.cat(found)


def lost(base: Any, meant: Any, served: Any) -> float:
    """Relative rounding error ‖W' − W − ΔW‖ / ‖ΔW‖ over all weights that the adapter changes."""
    weights, kept = dict(meant.named_parameters()), dict(served.named_parameters())
    error = change = 0.0
    for name, before in base.named_parameters():
        after = weights[name].detach()
        if not torch.equal(before, after):
            error += float((kept[name].detach().float() - after).square().sum())
            change += float((after - before.detach()).square().sum())
    return float((error / change) ** 0.5)


def main(
    run: Annotated[Path, typer.Argument(help="A run of `method: lora`.")],
    adapter: Annotated[Path | None, typer.Option(help="A version of the run; the newest by default.")] = None,
    rows: Annotated[int, typer.Option(help="Completions that are scored.")] = 64,
) -> None:
    """Score a run's completions with its adapter, live and merged."""
    source = locate_model(load_config(str(run / "config.yaml"), []).model.name)
    scored = tokens_of(run, rows)

    def base(dtype: torch.dtype) -> Any:
        """The base model as served, with weights rounded to bfloat16, computing in `dtype`."""
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=BF16)
        return model.to(dtype).eval()

    def adapted(dtype: torch.dtype) -> Any:
        return PeftModel.from_pretrained(base(dtype), str(adapter or run / "adapters" / "latest")).to(dtype).eval()

    merged = adapted(FP32).merge_and_unload()
    served = adapted(FP32).merge_and_unload().to(BF16)
    share = lost(base(FP32), merged, served)
    found = {
        "base": logprobs(base(FP32), scored),
        "meant": logprobs(merged, scored),
        "live": logprobs(adapted(BF16), scored),
        "merged": logprobs(served, scored),
        "rounded weights": logprobs(served.to(FP32), scored),
    }
    table = Table("", "½ mean square, nats", "mean, nats", "largest, nats", title=f"{len(found['meant']):,} tokens")
    gaps = {}
    for one, other in (
        ("base", "meant"),
        ("live", "meant"),
        ("merged", "meant"),
        ("rounded weights", "meant"),
        ("merged", "live"),
    ):
        gap = found[one] - found[other]
        gaps[one, other] = float(0.5 * gap.square().mean())
        table.add_row(
            f"{one} against {other}",
            f"{gaps[one, other]:.2e}",
            f"{float(gap.mean()):+.2e}",
            f"{float(gap.abs().max()):.3f}",
        )
    Console().print(table)
    print(f"of the adapter's change to the weights rounding loses {share:.1%} (root mean square)")
    print(f"sampler gap merged to live ratio {gaps['merged', 'live'] / gaps['live', 'meant']:.2f}")


if __name__ == "__main__":
    typer.run(main)
