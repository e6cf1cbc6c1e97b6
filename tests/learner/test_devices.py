"""A pass of the learner on a card without a card: torch's fake tensors know their shape, precision and device, hold no
values, and raise an error where an operation mixes two devices. The device is `meta`, and is taken for CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from rl_engine.config import Config
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.gradients import GradientGuard
from rl_engine.learner.objective import needs_base, objective
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.statistics import StepStatistics
from rl_engine.policy import methods
from rl_engine.policy.base_model import _made_ready, attention_of, layout_of, load_weights
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.trainable import TrainablePolicy

CUDA, CARD = torch.device("cuda"), torch.device("meta")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Inside it every new tensor is a fake one."""
    monkeypatch.setattr(FakeTensor, "is_cuda", property(lambda self: self.device == CARD), raising=False)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(methods, "load_causal_lm", on_host)
    with functorch_config.patch(fake_tensor_allow_meta=True), torch.compiler.set_stance("force_eager"):
        yield FakeTensorMode()


def on_host(config: Config, _: torch.device, dtype: torch.dtype | None = None) -> Any:
    """A model made ready for a card, and not moved there yet."""
    return _made_ready(load_weights(config.model, attention_of(config, CUDA), dtype), config, CUDA)


def moved(policy: TrainablePolicy, models: list[nn.Module], mode: FakeTensorMode) -> list[nn.Parameter]:
    """Move the models to the card, and return the parameters that are trained."""
    there: dict[int, Any] = {}
    held = [*policy.parameters.values()]

    def on_card(one: Tensor) -> Any:
        if id(one) not in there:
            empty = torch.empty(one.shape, dtype=one.dtype, device=CARD)
            there[id(one)] = nn.Parameter(empty, one.requires_grad) if isinstance(one, nn.Parameter) else empty
        return there[id(one)]

    with mode:
        for module in [module for model in models for module in model.modules()]:
            for place in (module._parameters, module._buffers):
                place.update({name: None if one is None else on_card(one) for name, one in place.items()})
    return [there[id(one)] for one in held]


@pytest.mark.parametrize(
    "settings",
    [
        ("learner.layout=packed", "lora.rank=3", "loss.kl_coef=0.1", "loss.entropy_coef=0.01"),
        ("learner.layout=shared_prompt", "lora.targets=all+lm_head"),
        ("learner.layout=padded", "learner.gradient_checkpointing=true", "loss.sampler_correction=token_truncate"),
        ("method=full", "optim.lr=1e-5", "loss.kl_coef=0.1"),
    ],
    ids=lambda settings: settings[0],
)
def test_a_pass_mixes_no_devices(
    settings: tuple[str, ...],
    make_config: Callable[..., Config],
    samples: list[TrainingSample],
    card: FakeTensorMode,
) -> None:
    config = make_config("model.dtype=bfloat16", *settings)
    policy = methods.load_policy(config, CUDA, on_host)
    model = LogprobModel(policy.causal_lm, config.sampling.temperature, learn_entropy=config.loss.entropy_coef != 0)
    base = getattr(policy, "_base", None)
    trained = moved(policy, [model, *([base] if base is not None else [])], card)
    statistics = StepStatistics(Ranks(0, 1, CARD))
    with card:
        host = collate(samples, 0, layout_of(config, CUDA))
        batch = host.to(CARD)
        model.train()
        logprob_N, entropy_N = model(batch)
        base_N = None
        if policy.has_base:
            with torch.no_grad(), policy.as_base(model) as score:
                base_N = score(batch)[0]
        penalty_BC = batch.spread(base_N) if base_N is not None and needs_base(config.loss) else None
        part = objective(config.loss, batch, batch.spread(logprob_N), batch.spread(entropy_N), penalty_BC)
        part.loss.backward()
        statistics.add(part, logprob_N.detach(), entropy_N.detach(), batch)
        statistics.add_gap(logprob_N.detach(), batch, samples)
        if base_N is not None:
            statistics.add_base(logprob_N.detach(), base_N)
        guard = GradientGuard(trained, torch.optim.SGD(trained), Ranks(0, 1, CARD), "")
        for last in (statistics._ratio_quantiles, guard.allows):  # they end with a value, which no tensor has here
            with pytest.raises(DataDependentOutputException):
                last()
        with pytest.raises(RuntimeError, match="found at least two devices, meta and cpu"):
            batch.mask_BC & host.mask_BC
    assert logprob_N.device == CARD
    for one in trained:
        assert one.grad is not None
        assert (one.grad.device, one.grad.dtype) == (CARD, one.dtype)
