"""`lora.init` → how an adapter is initialized: the available ways, how each is served, and why others are refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Start:
    """An initial adapter.

    Example: `Start("pissa", served="converted")`
    """

    peft: bool | str
    """The value for PEFT's `init_lora_weights`."""
    served: str = "as is"
    """`converted`: the initial update is not zero and is subtracted, as [A; A₀] and [B, −B₀] of twice the rank.
    `composed`: A and B are computed from fixed directions and `lora.numbers` trained numbers."""
    calibrated: bool = False
    """Whether it is computed from the model's activations on the run's prompts."""


STARTS: dict[str, Start] = {
    "default": Start(True),
    "gaussian": Start("gaussian"),
    "orthogonal": Start("orthogonal"),
    # Our implementation (`lora.start.fit_to_activations`): PEFT's needs a data loader.
    "eva": Start(True, calibrated=True),
    "pissa": Start("pissa", served="converted"),
    "pissa_niter_16": Start("pissa_niter_16", served="converted"),
    "olora": Start("olora", served="converted"),
    # Our implementation (`lora.start.tie_to_numbers`): PEFT's is not a LoRA adapter, and vLLM serves nothing else.
    "tiny": Start(True, served="composed"),
}

REFUSED: dict[str, str] = {
    "loftq": "it trains over a quantized base, and the sampler serves the base as it is: save the quantized model as a "
    "directory, name that in model.name, and use lora.init=default",
    "corda": "it needs covariances collected over a dataset of its own: use eva, which uses the run's prompts",
    "lora_ga": "it needs gradients of a supervised loss before training: use pissa or eva",
    "mica": "it freezes B, and every rule here is of an A and a B that learn: use default or orthogonal",
}
DORA = (
    "lora.dora: vLLM cannot serve DoRA (its update has full rank, so no adapter equals it): "
    "leave it off, or use method=full"
)
