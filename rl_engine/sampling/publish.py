"""Trained weights → published version → the sampler: written once, loaded everywhere, and verified to have arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gap import RESOLUTION, GapLimits, SamplerGapError, furthest
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.updates import training_samples
from rl_engine.sampling.past_versions import PastVersions
from rollout.adapters import AdapterStore, stated_manifest
from rollout.config import SamplingConfig
from rollout.engine import Engine
from rollout.types import AdapterRef, Prompt

CANARY_TOKENS = 8


@dataclass(frozen=True, slots=True)
class _Sighting:
    """The sampler's answers to the canary prompts, and the learner's log-probabilities of the same tokens."""

    weights_sha256: str
    samples: tuple[TrainingSample, ...]
    learner_logprobs: tuple[tuple[float, ...], ...]


@dataclass
class Publisher:
    """Publishes the learner's adapter and keeps the newest versions loaded in this rank's engine: as many as may be
    sampled from at a time."""

    store: AdapterStore
    engine: Engine
    learner: Learner
    ranks: Ranks
    canary: Sequence[Prompt]
    sampling: SamplingConfig
    limits: GapLimits
    facts: dict[str, str]
    """Entries of every manifest: base model, configuration hash."""
    keep: int | None = None
    """How many of the newest versions stay on disk, besides the one that `best` points at. None keeps all."""
    past: PastVersions | None = None
    """The parameters of earlier versions that are still loaded, for sampling ahead of the learner."""
    _loaded: list[AdapterRef] = field(default_factory=list, init=False)
    _last: _Sighting | None = field(default=None, init=False)

    def publish(self, version: int) -> AdapterRef:
        """Write the learner's adapter as `version`, load it, unload the oldest.

        Raises `SamplerGapError` when the sampler still answers as before although the adapter has changed.
        """
        whole = self.learner.weights()
        trainable = self.learner.trainable
        if self.ranks.is_main:
            self.store.publish(
                version,
                lambda directory: trainable.write(directory, whole),
                {"parent": version - 1 if version else None, **trainable.manifest_entries(), **self.facts},
            )
        self.ranks.barrier()
        ref = self.store.announced(version)
        self.engine.load_adapter(ref)
        self._loaded.append(ref)
        if self.past is not None:
            self.past.remember(ref)
        if len(self._loaded) > (self.past.depth if self.past else 0) + 1:
            self.engine.unload_adapter(self._loaded.pop(0))
        self._look(ref)
        if self.ranks.is_main and self.keep is not None:
            for old in self.store.versions()[: -self.keep]:
                if old != self.store.pointed("best"):
                    self.store.delete(old)
        return ref

    def _look(self, ref: AdapterRef) -> None:
        """Sample the canary prompts, and compare the result with the learner's log-probabilities and with last time."""
        sampling = self.sampling.model_copy(update={"n": 1, "max_tokens": min(CANARY_TOKENS, self.sampling.max_tokens)})
        seeds = [f"canary/{index}" for index in range(len(self.canary))]
        groups = self.engine.generate(self.canary, sampling, ref, seeds)
        samples = tuple(sample for group in groups for sample in training_samples(group, [0.0]))
        scored = tuple(tuple(row) for row in self.learner.score(samples))
        # One of these few tokens may be so unlikely that two kernels round it far apart; two mean a different adapter.
        gap = furthest(scored, (sample.behaviour_logprobs for sample in samples), but=1)
        if not gap <= self.limits.logprob:
            raise SamplerGapError(
                f"{ref.key} did not reach the sampler: on the canary prompts its log-probabilities are {gap:.3g} nats "
                f"from the learner's (limit {self.limits.logprob:.3g}, rollout.max_logprob_gap)"
            )
        manifest = stated_manifest(ref.path)
        sighting = _Sighting(manifest["files"][manifest["weights"]], samples, scored)
        self._refuse_stale(sighting, ref)
        self._last = sighting

    def _refuse_stale(self, now: _Sighting, ref: AdapterRef) -> None:
        """Raise if the sampler repeats its previous answers to the last digit while the learner's log-probabilities of
        those answers have moved: then it still samples from the old adapter."""
        before = self._last
        if before is None or before.weights_sha256 == now.weights_sha256 or before.samples != now.samples:
            return
        if before.learner_logprobs != now.learner_logprobs:
            moved = furthest(now.learner_logprobs, before.learner_logprobs)
            # A move smaller than the sampler's precision can resolve proves nothing.
            if not moved <= RESOLUTION[self.learner.config.model.precision]:
                raise SamplerGapError(
                    f"{ref.key} is loaded, but the sampler answers exactly as the version before it did, while the "
                    f"learner's log-probabilities of those answers moved by up to {moved:.3g} nats"
                )
