"""The `lora:` section: which layers an adapter changes, by how much, and where it starts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rl_engine.config.starts import DORA, REFUSED, STARTS
from rollout.config import Section


class LoraConfig(Section):
    rank: int = Field(1, ge=1, le=512, description="Rank of each layer's update.")
    alpha: float = Field(32.0, gt=0, description="Scale of the update, which is (alpha / rank) · B·A.")
    targets: str | tuple[str, ...] = Field(
        "all",
        description="Layers to adapt: `all` linear layers, `mlp` or `attention`, each optionally with "
        "`+lm_head` for the output embedding, or names of layers.",
    )
    expert_rank: int | Literal["auto"] = Field(
        "auto",
        description="Mixture of experts: rank of each expert's update. auto: rank / active experts, at least 1.",
    )
    init: str = Field(
        "default",
        description=f"How the adapter is initialized: {', '.join(STARTS)}. eva, pissa, olora and tiny "
        "depend on the model's weights or activations; the others do not (docs/choosing.md).",
    )
    numbers: int = Field(
        13,
        ge=1,
        le=1000,
        description="`init: tiny` (TinyLoRA) only: how many numbers are trained in the whole adapter; all "
        "layers share them.",
    )
    plus_ratio: float = Field(
        1.0,
        gt=0,
        le=1024,
        description="LoRA+: the learning rate of B as a multiple of `optim.lr`, the learning rate of A.",
    )
    rslora: bool = Field(False, description="Scale by alpha / √rank (rsLoRA) instead of alpha / rank.")
    dora: bool = Field(
        False, description="Refused, since vLLM does not serve DoRA; the message says what to do instead."
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=512)]] = Field(
        {},
        description="Ranks for individual layers, by name or path, such as `{down_proj: 4}`; the first match applies.",
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Alphas for individual layers, in the same way."
    )
    start_from: str | None = Field(
        None,
        description="Directory of an adapter to continue training; it must have this rank, alpha and targets. A "
        "resumed run does not read it.",
    )

    @property
    def is_tiny(self) -> bool:
        """Whether only `numbers` are trained."""
        return STARTS[self.init].served == "composed"

    @property
    def served_factor(self) -> int:
        """Ratio of the published adapter's rank to the trained one's."""
        return 2 if STARTS[self.init].served == "converted" else 1

    @property
    def served_rank(self) -> int:
        """Largest rank that the sampler has to serve."""
        return self.served_factor * max([self.rank, *self.rank_pattern.values()])

    @model_validator(mode="after")
    def _can_be_trained_and_served(self) -> Self:
        if self.dora:
            raise ValueError(DORA)
        if not self.targets:
            raise ValueError(f"lora.targets is {self.targets!r}: give all, or the names of some layers")
        if self.init not in STARTS:
            reason = REFUSED.get(self.init)
            known = f"known are {', '.join(STARTS)}"
            raise ValueError(f"lora.init is {self.init!r}: " + (f"not offered: {reason}" if reason else known))
        ranks = [self.rank, *self.rank_pattern.values()]
        if self.init == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError(f"lora.init orthogonal needs even ranks, not {', '.join(map(str, ranks))}")
        if self.served_rank > 512:
            raise ValueError(f"lora.init {self.init} is served at rank {self.served_rank}, and vLLM serves up to 512")
        if self.is_tiny and self.plus_ratio != 1:
            raise ValueError(
                f"lora.plus_ratio is {self.plus_ratio:g}, and with lora.init {self.init} no B is trained: leave it out"
            )
        if self.start_from is not None and self.init != "default":
            raise ValueError(f"lora.start_from says where the adapter starts: leave lora.init ({self.init}) out")
        return self


def refuse_unknown_rate(lora: LoraConfig, lr: float | str, method: str) -> None:
    """Raises `ValueError` for `optim.lr: auto` if no rule is known for these settings."""
    if method == "lora" and lora.is_tiny and lr == "auto":
        raise ValueError(
            f"optim.lr auto has no rule for lora.init {lora.init}, whose best rate moves with lora.numbers: give a "
            "number, as optim.lr=1e-3, and try others beside it"
        )
