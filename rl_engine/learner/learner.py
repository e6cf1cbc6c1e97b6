"""Micro-batches → a new adapter: the policy under DeepSpeed. The only file that imports deepspeed's engine.

The loss of an update is one sum over all its tokens, each with the weight the normalizer gave it. A rank adds up the
part of its own micro-batches; DeepSpeed, told that each `backward` is unscaled, averages the ranks' gradients, so each
rank multiplies by their number and the average is the sum again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from rl_engine.config import Config
from rl_engine.learner.adam import adam
from rl_engine.learner.batching import TrainingSample, collate, pack, share_of_rank
from rl_engine.learner.gap import GapLimits, check_gap
from rl_engine.learner.gradients import GradientGuard
from rl_engine.learner.objective import needs_base, needs_old_logprobs, objective
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.statistics import LearnStats, StepStatistics
from rl_engine.policy.agreement import check_with_prompts
from rl_engine.policy.attention import SHARING
from rl_engine.policy.base_model import LoadBase, layout_of, load_causal_lm
from rl_engine.policy.compiled_layers import compile_layers, is_worth_compiling
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.methods import METHODS
from rl_engine.policy.micro_batch import MicroBatch

# ZeRO-3 leaves parameters smaller than this whole on every rank.
PERSISTENT_PARAMETERS = 100_000
# DeepSpeed's own timer would wait for the card in every forward pass.
QUIET = {"steps_per_print": 10**9, "timers": {"throughput": {"enabled": False}}}
# Completions of a rank that the KL to the base is measured on where the loss does not need it.
KL_SAMPLES = 32
ADVICE = (
    "The sampler is not the cause: its log-probabilities were compared with the learner's and agree. Look at loss, "
    "ratio/max and grad_norm of the steps before, and try a lower optim.lr, optim.clip_norm, or a bounded weight "
    "(loss.sampler_correction=token_truncate)."
)
NOTHING = TrainingSample(prompt_ids=(0,), completion_ids=(0,), behaviour_logprobs=(0.0,), advantage=0.0, weight=0.0)


class Learner:
    """The policy, what of it learns, and its optimizer on this rank."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        pad_id: int,
        prompts: Sequence[Sequence[int]] = (),
        load: LoadBase = load_causal_lm,
        *,
        begins: bool = True,
    ) -> None:
        """`prompts`: token ids of the run's prompts. On the first one the learner is compared with the model's own
        forward pass, and on all of them adapters find the activations that they start from. `load` gives the base.
        `begins`: no checkpoint will be restored into it.

        Raises `DisagreementError` for a model whose log-probabilities the learner cannot compute.
        """
        self.config = config
        self.ranks = ranks
        self.trainable = METHODS[config.method](config, ranks.device, load)
        self.parameters = self.trainable.parameters
        self.layout = layout_of(config, ranks.device)
        self._collate = partial(collate, pad_id=pad_id, layout=self.layout)
        self.optimizer = adam(
            self.trainable.param_groups(),
            config.optim,
            ranks.device.type,
            offloaded=config.learner.offload_optimizer,
        )
        self._full_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._grad_norm = 0.0
        self.is_whole = True
        """Whether weights and moments are those after a step, and not after a part of its updates."""
        self._is_compiled = False
        self._guard = GradientGuard(
            self.parameters.values(), self.optimizer, ranks, ADVICE, sharded=config.learner.zero_stage > 0
        )
        self.policy = LogprobModel(
            self.trainable.causal_lm, config.sampling.temperature, learn_entropy=config.loss.entropy_coef != 0
        )
        if begins:
            self.trainable.begin(partial(self.policy, self._alone(ids)) for ids in prompts)
        check_with_prompts(self.policy, prompts, self._continued, config.model.name)
        self.deepspeed_engine = self._start_deepspeed()

    @property
    def is_worth_compiling(self) -> bool:
        """Whether to call `compile_layers`."""
        return is_worth_compiling(self.config, self.trainable.causal_lm, self.ranks.device)

    def compile_layers(self, prompts: Sequence[Sequence[int]]) -> None:
        """Have the decoder layers compiled, and tried on the longest of the prompts' token ids.

        To be called when a sampler in this process has been started: what is compiled is for the number of threads that
        there are, and vLLM leaves one.
        """
        self.policy.train()
        longest = self._continued(max(prompts, key=len))
        self._is_compiled = compile_layers(self.trainable.causal_lm, lambda: self.policy(longest)[0])

    def _alone(self, prompt_ids: Sequence[int]) -> MicroBatch:
        """A micro-batch of one prompt, whose last token stands for the completion: every token of it, and no other."""
        *before, last = prompt_ids
        # Where prompts are shared a completion's last token is not computed.
        end = (last, last) if self.layout in SHARING else (last,)
        sample = replace(NOTHING, prompt_ids=tuple(before), completion_ids=end, behaviour_logprobs=(0.0,) * len(end))
        return self._collate([sample]).to(self.ranks.device)

    def _continued(self, token_ids: Sequence[int]) -> MicroBatch:
        """A micro-batch of one prompt, all of which but its first token stands for the completion."""
        first, *others = token_ids
        sample = replace(
            NOTHING, prompt_ids=(first,), completion_ids=tuple(others), behaviour_logprobs=(0.0,) * len(others)
        )
        return self._collate([sample]).to(self.ranks.device)

    def _start_deepspeed(self) -> Any:
        import deepspeed

        settings = self.config.learner
        stage = settings.zero_stage
        if stage == 0:
            # Without ZeRO the plain optimizer steps on reduced gradients, and nothing else sees their norm.
            self.optimizer.register_step_pre_hook(self._clip)
        # DeepSpeed's default, 5e8, would hold 2 GB for an adapter of some megabytes.
        count = sum(parameter.numel() for parameter in self.parameters.values())
        zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(500_000_000, count)}
        if stage == 3:
            zero["stage3_param_persistence_threshold"] = PERSISTENT_PARAMETERS
        if settings.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        engine, *_ = deepspeed.initialize(
            model=self.policy,
            optimizer=self.optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                # `step` is the boundary, whatever the number of micro-batches before it.
                "managed_gradient_accumulation": False,
                "gradient_clipping": self.config.optim.clip_norm if stage else 0.0,
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                # torch's Adam steps on the host as well; DeepSpeed's own would have to be compiled first.
                "zero_force_ds_cpu_optimizer": False,
                **QUIET,
            },
        )
        if stage == 3:
            pairs = self.trainable.prepare_for_zero3()
            if self.policy.head_is_frozen:
                pairs += [(self.policy, parameter) for parameter in self.policy.head.parameters()]
            for module, parameter in pairs:
                deepspeed.zero.register_external_parameter(module, parameter)
            self.trainable.shard_base(self._sharded)
        return engine

    def _sharded(self, model: nn.Module) -> Any:
        """A frozen model as ZeRO-3 keeps one: spread over the ranks, each layer gathered for its pass."""
        import deepspeed

        zero = {"stage": 3, "stage3_param_persistence_threshold": PERSISTENT_PARAMETERS}
        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **QUIET}
        engine, *_ = deepspeed.initialize(model=model, config=settings)
        return engine

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        limit = self.config.optim.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
        self._grad_norm = float(norm)

    def set_rate(self, factor: float) -> None:
        """Let every parameter learn at so many times its full rate."""
        for group, rate in zip(self.optimizer.param_groups, self._full_rates, strict=True):
            group["lr"] = factor * rate

    def step(
        self,
        updates: Sequence[Sequence[TrainingSample]],
        limits: GapLimits | None,
        leave_if_asked: Callable[[], None] = lambda: None,
    ) -> LearnStats:
        """One optimizer update for each of `updates` in each epoch; every rank passes the same samples.

        `leave_if_asked` is called, on all ranks alike, before each micro-batch of the first update: what it raises
        finds the policy and Adam's moments as they were before the step.
        Raises `SamplerGapError` before anything is updated when the sampler's log-probabilities and the learner's
        are further apart than the limits; None where that has been checked. An update whose gradient is no number is
        left out, and raises `NonFiniteGradientError` after several in a row.
        """
        self.deepspeed_engine.train()
        statistics = self._new_statistics(limits)
        norms = []
        parts = self._in_turn(updates)
        for index, samples in enumerate(parts):
            leave = leave_if_asked if index == 0 else lambda: None
            self._pass_over(samples, statistics, learn=True, measure=index == 0, before_each=leave)
            if index == 0:
                check_gap(statistics.gap(), limits)
            allowed = self._guard.allows()
            self.is_whole = False
            self.deepspeed_engine.step()
            if allowed:
                norms.append(self._norm_of_update())
        self.is_whole = True
        made = len(norms)
        return replace(
            statistics.totals(), grad_norm=fmean(norms) if norms else math.nan, updates=made, skipped=len(parts) - made
        )

    def _in_turn(self, updates: Sequence[Sequence[TrainingSample]]) -> list[Sequence[TrainingSample]]:
        """The samples of every update of a step, each with what its loss must know of the learner as it is now.

        The first update's do without: its own pass is the policy at the start of the step, to the last bit.
        """
        epochs = self.config.learner.epochs_per_step
        first, *later = list(updates) * epochs
        if later and needs_old_logprobs(self.config.loss):
            # The last `len(updates)` of them are each once, or, in one epoch, all that come later.
            scored = [self._with_old_logprobs(samples) for samples in later[-len(updates) :]]
            return [first, *(scored * epochs)[-len(later) :]]
        return [first, *later]

    def _norm_of_update(self) -> float:
        """The gradient's norm before clipping, of the update just made."""
        if self.config.learner.zero_stage == 0:
            return self._grad_norm
        return float(self.deepspeed_engine.get_global_grad_norm())

    def prime(self) -> None:
        """A step with a gradient of exactly zero: it moves nothing, and the optimizer then has its state to restore.

        DeepSpeed makes its shards of the moments in the first step, and only then knows whose they are.
        """
        self.deepspeed_engine.train()
        self._pass_over([NOTHING], StepStatistics(self.ranks), learn=True, measure=False)
        self._guard.allows()
        self.deepspeed_engine.step()

    @torch.no_grad()
    def measure(self, samples: Sequence[TrainingSample], limits: GapLimits | None) -> LearnStats:
        """The figures of `step` without a step: for one whose groups carry no signal."""
        statistics = self._new_statistics(limits)
        self._pass_over(samples, statistics, learn=False, measure=True)
        stats = statistics.totals()
        check_gap(stats.gap, limits)
        return stats

    def _new_statistics(self, limits: GapLimits | None) -> StepStatistics:
        return StepStatistics(self.ranks, math.inf if limits is None else limits.logprob)

    def _pass_over(
        self,
        samples: Sequence[TrainingSample],
        statistics: StepStatistics,
        *,
        learn: bool,
        measure: bool,
        before_each: Callable[[], None] = lambda: None,
    ) -> None:
        """Forward over this rank's micro-batches, and backward to learn.

        `measure`: also how far the policy is from the sampler and the base; that is a figure of the step's beginning.
        """
        loss_config = self.config.loss
        batches = pack(samples, self.config.learner.tokens_per_microbatch, self.layout)
        mine = share_of_rank(batches, self.ranks.rank, self.ranks.count)
        own = len(self.ranks.share(batches))
        for index, rows in enumerate(mine):
            before_each()
            batch = self._collate(rows).to(self.ranks.device)
            # Before the policy's own pass: ZeRO-3 keeps what a forward pass gathered for the backward pass next to it.
            base_N = None
            if needs_base(loss_config):
                base_N = self._base_logprobs(batch)
            elif measure and self.trainable.has_base and index == len(mine) // 2:
                # To know the KL to the base, a few completions of median length do.
                base_N = self._base_logprobs(self._collate(rows[:KL_SAMPLES]).to(self.ranks.device))
            logprob_N, entropy_N = self.deepspeed_engine(batch)
            part = objective(
                loss_config,
                batch,
                batch.spread(logprob_N),
                batch.spread(entropy_N),
                batch.spread(base_N) if base_N is not None and needs_base(loss_config) else None,
            )
            if learn:
                self.deepspeed_engine.backward(part.loss * self.ranks.count)
            if index == own:
                continue  # passed for the other ranks' sake alone
            statistics.add(part, logprob_N.detach(), entropy_N.detach(), batch)
            if measure:
                statistics.add_gap(logprob_N.detach(), batch, rows)
            if base_N is not None:
                statistics.add_base(logprob_N.detach()[: len(base_N)], base_N)

    @torch.no_grad()
    def score(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        """Log-probabilities (nats) of each sample's completion tokens under the current policy, in order; one sample
        at a time, so for a few."""
        scores = []
        for sample in samples:
            logprob_N, _ = self.deepspeed_engine(self._collate([sample]).to(self.ranks.device))
            scores.append(logprob_N.tolist())
        return scores

    def _with_old_logprobs(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples with the learner's own log-probabilities of now, in the order of their micro-batches.

        They are scored as they are learned from, so that a policy that has not moved has a ratio of one: in the same
        micro-batches, each rank its own, and by compiled layers where there are any, which need a gradient's pass.
        """
        batches = pack(samples, self.config.learner.tokens_per_microbatch, self.layout)
        passes = []
        for rows in share_of_rank(batches, self.ranks.rank, self.ranks.count):
            with torch.set_grad_enabled(self._is_compiled):
                logprob_N = self.deepspeed_engine(self._collate(rows).to(self.ranks.device))[0].detach()
            passes.append((rows, logprob_N.split([len(row.completion_ids) for row in rows])))
        # Without what only made every rank pass equally often. Read when all are asked for: reading waits for a card.
        mine = [
            [replace(row, old_logprobs=tuple(part.tolist())) for row, part in zip(rows, parts, strict=True)]
            for rows, parts in passes[: len(self.ranks.share(batches))]
        ]
        return [row for rows in self.ranks.gather(mine) for row in rows]

    @torch.no_grad()
    def _base_logprobs(self, batch: MicroBatch) -> Tensor:
        with self.trainable.as_base(self.deepspeed_engine) as score:
            return score(batch)[0]

    @contextlib.contextmanager
    def whole(self, parameter: nn.Parameter, *, modify: bool = False) -> Iterator[None]:
        """Inside the block a parameter has its full value on every rank; under ZeRO-3 only what learns is ever
        gathered so, never a frozen base.

        With `modify`, what rank 0 writes into it inside the block is scattered again at its end.
        """
        if self.config.learner.zero_stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if modify else None):
            yield

    def release_memory(self) -> None:
        """Give cached memory of the card back, for the sampler that shares it to wake in."""
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def weights(self) -> dict[str, Tensor]:
        """A copy of what learns, on the CPU in float32, by published name. Collective: every rank calls it, and rank 0
        gets the tensors, the others nothing."""
        tensors = {}
        for name, parameter in self.parameters.items():
            with self.whole(parameter):
                if self.ranks.is_main:
                    tensors[name] = parameter.detach().float().cpu().clone()
        return tensors
