"""Micro-batches → a new adapter: the policy under DeepSpeed. The only file that imports DeepSpeed's engine.

The loss of an update is a single sum over all its tokens, each weighted by the normalizer. Each rank sums over its own
micro-batches. DeepSpeed, told not to scale the loss in `backward`, averages gradients over the ranks, so each rank
multiplies its loss by the number of ranks to turn that average back into a sum.
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
from rl_engine.learner.batching import TrainingSample, collate, continued, pack, share_of_rank
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
from rl_engine.policy.methods import load_policy
from rl_engine.policy.micro_batch import MicroBatch

# ZeRO-3 does not shard parameters smaller than this; every rank keeps them whole.
PERSISTENT_PARAMETERS = 100_000
# DeepSpeed's own timer would synchronize with the GPU in every forward pass.
QUIET = {"steps_per_print": 10**9, "timers": {"throughput": {"enabled": False}}}
# Completions per rank on which the KL to the base is measured when the loss does not need it.
KL_SAMPLES = 32
ADVICE = (
    "The sampler is not the cause: its log-probabilities were compared with the learner's and agree. Look at loss, "
    "ratio/max and grad_norm of the steps before, and try a lower optim.lr, optim.clip_norm, or a bounded weight "
    "(loss.sampler_correction=token_truncate)."
)
NOTHING = TrainingSample(prompt_ids=(0,), completion_ids=(0,), behaviour_logprobs=(0.0,), advantage=0.0, weight=0.0)


class Learner:
    """The policy, its trainable parameters and their optimizer on this rank."""

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
        """`prompts`: token ids of the run's prompts. The first is used to compare the learner with the model's own
        forward pass; all of them provide activations for adapter starts that need them. `load` loads the base model.
        `begins`: this learner starts training, that is, no checkpoint will be restored into it.

        Raises `DisagreementError` for a model whose log-probabilities the learner cannot compute.
        """
        self.config = config
        self.ranks = ranks
        self.trainable = load_policy(config, ranks.device, load)
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
        """False while only some of a step's updates have been made to the weights and moments."""
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
        """Compile the decoder layers and try them on the longest prompt.

        Call this after a sampler in this process has started: the compiled code is specialized to the current number of
        threads, and vLLM leaves one.
        """
        self.policy.train()
        longest = self._continued(max(prompts, key=len))
        self._is_compiled = compile_layers(self.trainable.causal_lm, lambda: self.policy(longest)[0])

    def _alone(self, prompt_ids: Sequence[int]) -> MicroBatch:
        """A micro-batch that computes exactly the tokens of one prompt; its last token stands for the completion."""
        *before, last = prompt_ids
        # Layouts that share prompts do not compute a completion's last token.
        end = (last, last) if self.layout in SHARING else (last,)
        sample = replace(NOTHING, prompt_ids=tuple(before), completion_ids=end, behaviour_logprobs=(0.0,) * len(end))
        return self._collate([sample]).to(self.ranks.device)

    def _continued(self, token_ids: Sequence[int]) -> MicroBatch:
        """A micro-batch of one prompt, in which all tokens but the first stand for the completion."""
        return self._collate([continued(token_ids)]).to(self.ranks.device)

    def _start_deepspeed(self) -> Any:
        import deepspeed

        settings = self.config.learner
        stage = settings.zero_stage
        if stage == 0:
            # Without ZeRO the plain optimizer steps on the reduced gradients, and only this hook sees their norm.
            self.optimizer.register_step_pre_hook(self._clip)
        # DeepSpeed's default bucket, 5e8 elements, would hold 2 GB for an adapter of a few megabytes.
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
                # Calling `step` ends an update, however many micro-batches came before it.
                "managed_gradient_accumulation": False,
                "gradient_clipping": self.config.optim.clip_norm if stage else 0.0,
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                # torch's Adam can step on the host too; DeepSpeed's own would have to be compiled first.
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
        """A frozen model under ZeRO-3: sharded over the ranks, with each layer gathered for its forward pass."""
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
        """Set every parameter group's learning rate to `factor` times its full rate."""
        for group, rate in zip(self.optimizer.param_groups, self._full_rates, strict=True):
            group["lr"] = factor * rate

    def step(
        self,
        updates: Sequence[Sequence[TrainingSample]],
        limits: GapLimits | None,
        leave_if_asked: Callable[[], None] = lambda: None,
    ) -> LearnStats:
        """One optimizer update for each of `updates` in each epoch; every rank passes in the same samples.

        All ranks call `leave_if_asked` before each micro-batch of the first update. If it raises, the policy and Adam's
        moments are still as they were before the step.
        Raises `SamplerGapError`, before anything is updated, if the sampler's and the learner's log-probabilities
        differ by more than `limits`; pass None if that has been checked already. An update whose gradient is infinite
        or NaN is skipped; several in a row raise `NonFiniteGradientError`.
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
        """The samples of each update of a step, with the learner's current log-probabilities if the loss needs them.

        The first update needs none: its own forward pass gives the policy at the start of the step, bit for bit.
        """
        epochs = self.config.learner.epochs_per_step
        first, *later = list(updates) * epochs
        if later and needs_old_logprobs(self.config.loss):
            # The last `len(updates)` of `later` are every update exactly once; with one epoch, they are all of `later`.
            scored = [self._with_old_logprobs(samples) for samples in later[-len(updates) :]]
            return [first, *(scored * epochs)[-len(later) :]]
        return [first, *later]

    def _norm_of_update(self) -> float:
        """The gradient norm, before clipping, of the update just made."""
        if self.config.learner.zero_stage == 0:
            return self._grad_norm
        return float(self.deepspeed_engine.get_global_grad_norm())

    def prime(self) -> None:
        """Take a step with a gradient of exactly zero: it moves nothing, but creates the optimizer state to restore.

        DeepSpeed creates its shards of the moments, and maps them to parameters, only in the first step.
        """
        self.deepspeed_engine.train()
        self._pass_over([NOTHING], StepStatistics(self.ranks), learn=True, measure=False)
        self._guard.allows()
        self.deepspeed_engine.step()

    @torch.no_grad()
    def measure(self, samples: Sequence[TrainingSample], limits: GapLimits | None) -> LearnStats:
        """The statistics of `step` without an update, for a step whose groups carry no signal."""
        statistics = self._new_statistics(limits)
        self._pass_over(samples, statistics, learn=False, measure=True)
        stats = statistics.totals()
        check_gap(stats.gap, limits)
        return stats

    def _new_statistics(self, limits: GapLimits | None) -> StepStatistics:
        return StepStatistics(self.ranks, math.inf if limits is None else limits.logprob)

    def _my_share(self, samples: Sequence[TrainingSample]) -> tuple[list[list[TrainingSample]], int]:
        """This rank's micro-batches, and how many of them are its own: one after those is filler, so that all ranks
        make the same number of passes."""
        batches = pack(samples, self.config.learner.tokens_per_microbatch, self.layout)
        return share_of_rank(batches, self.ranks.rank, self.ranks.count), len(self.ranks.share(batches))

    def _pass_over(
        self,
        samples: Sequence[TrainingSample],
        statistics: StepStatistics,
        *,
        learn: bool,
        measure: bool,
        before_each: Callable[[], None] = lambda: None,
    ) -> None:
        """Run forward over this rank's micro-batches, and backward if `learn`.

        `measure`: also measure how far the policy is from the sampler and the base. This is only meaningful before the
        step's first update.
        """
        loss_config = self.config.loss
        mine, own = self._my_share(samples)
        for index, rows in enumerate(mine):
            before_each()
            batch = self._collate(rows).to(self.ranks.device)
            # The base runs before the policy: ZeRO-3 keeps what a forward pass gathered for the backward that follows.
            base_N = None
            if needs_base(loss_config):
                base_N = self._base_logprobs(batch)
            elif measure and self.trainable.has_base and index == len(mine) // 2:
                # A few completions of median length are enough to measure the KL to the base.
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
                continue  # filler
            statistics.add(part, logprob_N.detach(), entropy_N.detach(), batch)
            if measure:
                statistics.add_gap(logprob_N.detach(), batch, rows)
            if base_N is not None:
                statistics.add_base(logprob_N.detach()[: len(base_N)], base_N)

    @torch.no_grad()
    def score(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        """Log-probabilities (nats) of each sample's completion tokens under the current policy, in order. It runs one
        sample at a time, so use it for a few."""
        scores = []
        for sample in samples:
            logprob_N, _ = self.deepspeed_engine(self._collate([sample]).to(self.ranks.device))
            scores.append(logprob_N.tolist())
        return scores

    def _with_old_logprobs(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples with the learner's current log-probabilities, in the order of their micro-batches.

        They are scored exactly as they are trained on, so that a policy that has not moved has a ratio of one: in the
        same micro-batches on the same ranks, and through the compiled layers if there are any, which are compiled for
        passes with gradients.
        """
        batches, own = self._my_share(samples)
        passes = []
        for rows in batches:
            with torch.set_grad_enabled(self._is_compiled):
                logprob_N = self.deepspeed_engine(self._collate(rows).to(self.ranks.device))[0].detach()
            passes.append((rows, logprob_N.split([len(row.completion_ids) for row in rows])))
        # Filler micro-batches are dropped. Values are read after all passes are queued, as reading waits for a GPU.
        mine = [
            [replace(row, old_logprobs=tuple(part.tolist())) for row, part in zip(rows, parts, strict=True)]
            for rows, parts in passes[:own]
        ]
        return [row for rows in self.ranks.gather(mine) for row in rows]

    @torch.no_grad()
    def _base_logprobs(self, batch: MicroBatch) -> Tensor:
        with self.trainable.as_base(self.deepspeed_engine) as score:
            return score(batch)[0]

    @contextlib.contextmanager
    def whole(self, parameter: nn.Parameter, *, modify: bool = False) -> Iterator[None]:
        """Give a parameter its full value on every rank inside the block. Under ZeRO-3 this is only ever used for
        trainable parameters, never for a frozen base.

        With `modify`, what rank 0 writes into the parameter is scattered to all ranks when the block ends.
        """
        if self.config.learner.zero_stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if modify else None):
            yield

    def release_memory(self) -> None:
        """Free the GPU's cached memory, so that the sampler sharing it can wake."""
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def weights(self) -> dict[str, Tensor]:
        """A float32 copy, on the CPU, of the trainable parameters by published name. Collective: every rank calls it;
        rank 0 gets the tensors, the others an empty dictionary."""
        tensors = {}
        for name, parameter in self.parameters.items():
            with self.whole(parameter):
                if self.ranks.is_main:
                    tensors[name] = parameter.detach().float().cpu().clone()
        return tensors
