"""Supervised runs of the embedded model, and the cross entropy of answers computed from its own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.functional import cross_entropy

from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rl_engine.run.output import Beginning
from rl_engine.sft.examples import IGNORED, Example
from rl_engine.sft.loop import SftRun
from rl_engine.sft.run import assemble, load_tokenizer, run_sft
from rollout.stopping import StopRequest

BASE = {
    "model": {"name": "embedded", "dtype": "float32"},
    "data": {"source": "arithmetic", "limit": 8, "test_size": 6, "max_tokens": 64},
    "lora": {"rank": 2},
    "optim": {"lr": 1e-3},
    "train": {"steps": 1, "batch_size": 8},
    "log": {"tensorboard": False},
}

CPU = torch.device("cpu")


def run_heard(config: SftConfig, *, resume: bool = False) -> int:
    """Execute the run as the command does, handling requests to stop."""
    stop = StopRequest()
    with stop.listening():
        return run_sft(config, stop, Beginning(resume=resume))


def config_of(directory: Path, *overrides: str) -> SftConfig:
    path = directory / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return read_config(SftConfig, str(path), [f"output_dir={directory / 'run'}", *overrides])


def assembled(directory: Path, *overrides: str) -> SftRun:
    """A run whose adapter, if it has one, is not zero at the start: with B = 0 the gradient of A would be zero."""
    config = config_of(directory, *overrides)
    run = assemble(config, load_tokenizer(config), StopRequest(), resume=False)
    run.records.open(-1)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in run.trainable.parameters.items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return run


def nats(causal_lm: Any, example: Example) -> torch.Tensor:
    """[N] −log p of one example's trained tokens, from the model's own logits, unbatched and unpadded."""
    logits_TV = causal_lm(torch.tensor(example.input_ids)[None]).logits[0]
    labels_T = torch.tensor(example.labels).long()
    nats_T = cross_entropy(logits_TV[:-1].float(), labels_T[1:], reduction="none", ignore_index=IGNORED)
    found: torch.Tensor = nats_T[labels_T[1:] != IGNORED]
    return found


def mean_nats(causal_lm: Any, examples: list[Example]) -> torch.Tensor:
    return torch.cat([nats(causal_lm, example) for example in examples]).mean()


RUN = (
    "lora.rank=1",
    "data.source=random_pairs",
    "data.random_pairs={count: 64, key_length: 4, value_length: 6}",
    "data.limit=null",
    "data.test_size=20",
    "train.steps=6",
    "train.microbatch_size=4",
    "optim={lr: 2e-3, schedule: linear, warmup_steps: 3}",
    "eval.at=[3]",
    "log.every=2",
)
