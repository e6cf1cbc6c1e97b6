"""`lora.init: tiny`: a few trained numbers that all layers share, against PEFT's own module, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import TinyLoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rl_engine.config import Config, LoraConfig
from rl_engine.config.file import ConfigError
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.learner import Learner
from rl_engine.learner.state import learner_state, restore_learner
from rl_engine.policy.lora.adapter import adapter_parameters, add_adapter, lora_layers, peft_config_of, served_tensors
from rl_engine.policy.lora.targets import coverage_of
from rollout.models import EMBEDDED_DIR
from tests.helpers.batches import LOOSE
from tests.helpers.precision import LOGPROB_NATS, assert_same_adam_steps

LearnerMaker = Callable[..., Learner]
NAMES = ("q_proj", "up_proj", "down_proj")
TINY = ("lora.init=tiny", "lora.rank=2", "optim.lr=1e-2")


def embedded() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)


@pytest.mark.parametrize("rank", [1, 3])
def test_tinylora_matches_pefts(rank: int) -> None:
    """Log-probabilities and their gradient agree once PEFT's projections match ours: it has √Σ on both sides."""
    count = 5
    ours, _ = add_adapter(
        embedded(), LoraConfig(init="tiny", rank=rank, alpha=float(rank), numbers=count, targets=NAMES), 3
    )
    peft_config = TinyLoraConfig(r=rank, u=count, weight_tying=1.0, target_modules=list(NAMES))
    theirs: Any = get_peft_model(embedded(), peft_config)
    for path, layer in lora_layers(ours).items():
        other = theirs.get_submodule(path)
        a_RI = other.tinylora_A["default"]
        sigma_R = a_RI.square().sum(1)
        sign_R = (a_RI * layer.get_buffer("fixed_a")).sum(1).sign()
        left_R, right_R = sign_R * sigma_R.sqrt(), sign_R / sigma_R.sqrt()
        other.tinylora_P["default"] = left_R[:, None] * layer.get_buffer("projections") * right_R
    (numbers,) = adapter_parameters(ours).values()
    (their_numbers,) = (parameter for parameter in theirs.parameters() if parameter.requires_grad)
    ids = torch.tensor([[18, 5, 19, 7, 8, 3, 4, 9]])
    logprobs = []
    for model, parameter in ((ours, numbers), (theirs, their_numbers)):
        with torch.no_grad():
            parameter.copy_(torch.tensor([0.02, -0.01, 0.03, 0.01, -0.04]))
        logprobs.append(model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]))
        logprobs[-1].sum().backward()
    without = embedded()(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert (logprobs[0] - without).abs().max() > 100 * LOGPROB_NATS
    torch.testing.assert_close(logprobs[0], logprobs[1], atol=LOGPROB_NATS, rtol=0)
    torch.testing.assert_close(numbers.grad, their_numbers.grad, rtol=1e-3, atol=1e-3)


def test_the_update_lies_in_the_weights_leading_directions() -> None:
    """B·A = UΣ R Vᵀ with torch's own decomposition, and the same scale as every adapter here."""
    model, _ = add_adapter(embedded(), LoraConfig(init="tiny", rank=2, numbers=4, targets="mlp"), 0)
    numbers = torch.tensor([0.5, -1.0, 2.0, 0.25])
    served = served_tensors(model, {"numbers": numbers})
    assert sorted({name.split(".")[-2] for name in served}) == ["lora_A", "lora_B"]
    for path, layer in lora_layers(model).items():
        base: Any = layer.get_base_layer()
        u_OR, s_R, vh_RI = (
            part.narrow(axis, 0, 2)
            for part, axis in zip(torch.linalg.svd(base.weight.double(), full_matrices=False), (1, 0, 0), strict=True)
        )
        a_RI, b_OR = (served[f"{path}.lora_{factor}.weight"].double() for factor in "AB")
        inside_RR = (u_OR / s_R).T @ b_OR @ a_RI @ vh_RI.T
        torch.testing.assert_close((u_OR * s_R) @ inside_RR @ vh_RI, b_OR @ a_RI, atol=1e-4, rtol=1e-4)
        # Signs depend on the library, but a run resumed elsewhere must find the same ones.
        assert (a_RI.gather(1, a_RI.abs().argmax(1, keepdim=True)) > 0).all()
    config = LoraConfig(init="tiny", rank=2, numbers=4, targets="mlp")
    fields = peft_config_of(model, config, "base")
    assert (fields["r"], fields["lora_alpha"], fields["init_lora_weights"], fields["peft_type"]) == (
        2,
        32,
        True,
        "LORA",
    )


@pytest.mark.parametrize(("stage", "numbers"), [(0, 8), (1, 1), (2, 8), (3, 1)])
def test_zero_stages_make_the_same_update_and_resume_exactly(
    stage: int, numbers: int, make_learner: LearnerMaker, samples: list[TrainingSample]
) -> None:
    settings = (*TINY, f"lora.numbers={numbers}", "lora.targets=all+lm_head", "optim.eps=1e-7")
    plain = make_learner(*settings)
    sharded = make_learner(*settings, f"learner.zero_stage={stage}", "learner.gradient_checkpointing=true")
    for learner in (plain, sharded):
        assert [(name, tensor.shape) for name, tensor in learner.weights().items()] == [("numbers", (numbers,))]
        for _ in range(2):
            learner.step([samples], LOOSE)
    assert_same_adam_steps(sharded.weights(), plain.weights(), plain.config.optim.rate)
    # Measuring the KL to the base switched the adapter off and on, which must not have made anything else trainable.
    assert [name for name, p in sharded.policy.named_parameters() if p.requires_grad and "numbers" not in name] == []

    resumed = make_learner(*settings, f"learner.zero_stage={stage}", "learner.gradient_checkpointing=true")
    restore_learner(resumed, learner_state(sharded))
    for learner in (sharded, resumed):
        learner.step([samples], LOOSE)
    assert torch.equal(resumed.weights()["numbers"], sharded.weights()["numbers"])
    assert resumed.weights()["numbers"].abs().min() > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.plus_ratio=16"], r"lora\.plus_ratio is 16, and with lora\.init tiny no B is trained: leave it out"),
        (["lora.start_from=x"], r"leave lora\.init \(tiny\) out"),
        (["optim.lr=auto"], r"optim\.lr auto has no rule for lora\.init tiny.*as optim\.lr=1e-3"),
        (["lora.numbers=0"], r"lora\.numbers.*greater than or equal to 1"),
        (["lora.numbers=1001"], r"lora\.numbers.*less than or equal to 1000"),
    ],
)
def test_settings_incompatible_with_few_numbers_are_refused(
    overrides: list[str], message: str, make_config: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config("lora.init=tiny", *overrides)


def test_redundant_numbers_are_refused() -> None:
    """28 layers of rank 1 have one dimension each. At rank 6 they have 36 each, the first rank with room for 1000."""
    model = embedded()
    assert coverage_of(model, LoraConfig(init="tiny", numbers=28)).trainable == 28
    with pytest.raises(ValueError, match=r"numbers is 29, and 28 layers of lora\.rank 1 have 28 dim.* lora\.rank=2"):
        coverage_of(model, LoraConfig(init="tiny", numbers=29))
    with pytest.raises(ValueError, match=r"numbers is 1000, .*lora\.rank=6$"):
        coverage_of(model, LoraConfig(init="tiny", rank=5, numbers=1000))
    found = coverage_of(model, LoraConfig(init="tiny", rank=6, numbers=1000))
    plain = coverage_of(model, LoraConfig(rank=6))
    assert (found.trainable, found.published) == (1000, plain.trainable)
    # A, B and, for each of the 28 layers, a thousand projections of 6 × 6; with an SVD start, the start beside A and B.
    assert found.fixed == plain.trainable + 1000 * 28 * 36
    svd = coverage_of(model, LoraConfig(rank=6, init="pissa"))
    assert (svd.trainable, svd.published, svd.fixed) == (plain.trainable, 2 * plain.trainable, plain.trainable)
    with pytest.raises(ValueError, match=r"lora\.rank is 193 at .*q_proj, and .* finds 192 .*: give 192 or less"):
        coverage_of(model, LoraConfig(init="tiny", rank=193))
