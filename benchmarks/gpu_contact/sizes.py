"""The amount of work in each stage, for a card with 80 GiB and for a CPU in a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Sampling arms, both in the engine of a rank-1 run.
IDLE, ADAPTER = "no adapter", "rank 1"

# The public config.json of Qwen2.5, as far as it affects sizes and arithmetic. Weights are random.
QWEN2_5: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "num_hidden_layers": 28,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
}
QWEN2_5_1_5B = QWEN2_5 | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
QWEN2_5_7B = QWEN2_5 | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
TINY = QWEN2_5 | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "vocab_size": 256,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The work of every stage."""

    name: str
    dtype: str
    shapes: dict[str, dict[str, Any]]
    """Name → config.json of the models with random weights; the first one also runs whole training steps."""
    problems: int
    """Problems per step; times `samples` is the number of completions sampled side by side."""
    samples: int
    tokens: int
    """Tokens of every sampled completion: random weights never end one early."""
    rows: int
    """Completions in the learner's micro-batch."""
    width: int
    """Tokens of the longest of them, prompt included."""
    product: int
    """Side of the matrices whose product is measured."""
    copied_mib: int
    rounds: int
    """How often each thing is measured, after a warm-up."""
    quickstart_steps: int
    patience: float
    """Factor on the stages' time limits, which are made for the card."""
    settings: tuple[str, ...]
    """Additional settings of every run."""
    quickstart: tuple[str, ...]
    """Additional settings of the quickstart."""

    @property
    def first_shape(self) -> str:
        return next(iter(self.shapes))


SIZES = {
    "card": Sizes(
        name="card",
        dtype="bfloat16",
        shapes={"Qwen2.5-1.5B": QWEN2_5_1_5B, "Qwen2.5-7B": QWEN2_5_7B},
        problems=16,
        samples=8,
        tokens=1024,
        rows=8,
        width=1024,
        product=8192,
        copied_mib=4096,
        rounds=5,
        quickstart_steps=25,
        patience=1,
        settings=(),
        quickstart=(),
    ),
    "cpu": Sizes(
        name="cpu",
        dtype="float32",
        shapes={"tiny": TINY, "tiny-untied": TINY | {"tie_word_embeddings": False}},
        problems=2,
        samples=2,
        tokens=16,
        rows=2,
        width=32,
        product=256,
        copied_mib=16,
        rounds=1,
        quickstart_steps=2,
        patience=5,
        settings=("rollout.kv_cache_gib=0.1", "rollout.max_num_seqs=32"),
        quickstart=("train.problems_per_step=8", "eval.limit=8", "eval.every=0"),
    ),
}
