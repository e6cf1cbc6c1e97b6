"""Shared by the tests of forgetting: adapters with their PEFT counterparts, prompts, and a local task."""

from __future__ import annotations

import contextlib
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rollout.adapters import AdapterStore
from rollout.models import EMBEDDED_DIR
from rollout.types import AdapterRef, Prompt
from tests.helpers.builders import prompt

NAMES = itertools.count()
# In the embedded model's alphabet. Of the last two, one marks a wrong answer as right, and one has two right answers.
SUMS: list[dict[str, Any]] = [
    {"sum": "3+4", "options": [r"\boxed{7}", r"\boxed{9}"], "right": 0},
    {"sum": "9-4", "options": [r"\boxed{12}", r"\boxed{5}"], "right": 1},
    {"sum": "10+7", "options": [r"\boxed{2}", "10+7=17\n" + r"\boxed{17}"], "right": 1},
    {"sum": "8+5-2", "options": [r"\boxed{11}", r"\boxed{3}"], "right": 1},
    {"sum": "10+7", "options": [r"\boxed{2}", r"\boxed{17}", "10+7=17\n" + r"\boxed{17}"], "right": 1},
]


def write_task(directory: Path, name: str = "sums", **changed: Any) -> None:
    """Write a task of lm-evaluation-harness over SUMS, as JSON, which is valid YAML."""
    directory.mkdir(exist_ok=True)
    rows = directory / "sums.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{sum}}=?\n",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "right",
        "target_delimiter": "",
        "metric_list": metrics,
        "metadata": {"version": 1},
    }
    (directory / f"{name}.yaml").write_text(json.dumps({**settings, **changed}))


def prompts_of(tokenizer: Any, texts: Sequence[str]) -> list[Prompt]:
    return [prompt(text, tokens=tokenizer(text).input_ids) for text in texts]


@dataclass(frozen=True)
class Policies:
    """The embedded model in transformers and PEFT, and two published adapters of rank 2, loaded into the engine."""

    base: Any
    moved: Any
    moved_ref: AdapterRef
    """An adapter with random B in attention, feed-forward and output head."""
    still_ref: AdapterRef
    """An adapter with B = 0."""

    def logprobs(self, ref: AdapterRef | None, ids: Sequence[int]) -> torch.Tensor:
        """[T, V] log-probabilities, in nats, of every token after each of `ids`."""
        model = self.moved if ref == self.moved_ref else self.base
        with torch.no_grad():
            logits: torch.Tensor = model(torch.tensor([list(ids)])).logits[0].double()
        return logits.log_softmax(-1)


@contextlib.contextmanager
def loaded_policies(engine: Any, root: Path) -> Iterator[Policies]:
    (moved, moved_ref), (_, still_ref) = (_adapted(spread, root) for spread in (0.15, 0.0))
    for ref in (moved_ref, still_ref):
        engine.load_adapter(ref)
    yield Policies(_embedded(), moved, moved_ref, still_ref)
    for ref in (moved_ref, still_ref):
        engine.unload_adapter(ref)


def _embedded() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32).eval()


def _adapted(spread: float, root: Path) -> tuple[Any, AdapterRef]:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    name = f"forgetting{next(NAMES)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the head is tied to the input, which PEFT advises against
        model = get_peft_model(_embedded(), LoraConfig(r=2, target_modules=["q_proj", "down_proj", "lm_head"])).eval()
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=spread)
        write = lambda directory: model.save_pretrained(str(directory))  # noqa: E731
        return model, AdapterStore(root / name, name=name).publish(0, write, {"rank": 2})
