"""Workers with vLLM sample exactly what the in-process engine samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl_engine.learner.learner import Learner
from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.types import Problem, Prompt, RolloutGroup
from rollout.vllm import start_engine
from rollout.work_items import PromptBatch
from tests.helpers.batches import LOOSE, alternating
from tests.helpers.pools import PoolMaker, seeds
from tests.helpers.same_groups import assert_same_but_for_rounding

pytestmark = [
    pytest.mark.engine,
    # Ray closes its log files when it is garbage-collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


SAMPLING = SamplingConfig(n=4, max_tokens=24)


def test_workers_sample_what_the_engine_in_process_samples(
    make_pool: PoolMaker, make_learner: Callable[..., Learner], vllm_engine: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Bit for bit, if the batches are the same: a work item is one batch. Up to rounding if items are sampled side by
    side, as rounding depends on the other rows of the batch."""
    texts = ("3+4=?", "9+8+1=?", "7-5=?", "2+2=?")
    problems = [Problem(id=text, text=text, answer="") for text in texts]
    prompts = [Prompt(problem=p, text=p.text, token_ids=tuple(tokenizer(p.text)["input_ids"])) for p in problems]
    learner = make_learner("optim.lr=1e-2")
    groups = vllm_engine.generate(prompts, SAMPLING, None, seeds(prompts))
    learner.step([alternating(groups)], LOOSE)
    weights = learner.weights()
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    store = AdapterStore(tmp_path / "adapters", name="of_the_pool")
    ref = store.publish(
        1, lambda directory: learner.trainable.write(directory, weights), {**learner.trainable.manifest_entries()}
    )
    vllm_engine.load_adapter(ref)

    def alone(size: int) -> list[RolloutGroup]:
        """What the engine in process samples in batches of `size` prompts."""
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        return [group for batch in batches for group in vllm_engine.generate(batch, SAMPLING, ref, seeds(batch))]

    pairs, singles = alone(2), alone(1)
    vllm_engine.unload_adapter(ref)
    # A worker has room for one work item of two prompts, as many as the pool makes, or for two of one.
    limits = {"start_timeout_s": 400, "piece_timeout_s": 400}
    pool = make_pool(vllm_engine.settings, start_engine, workers=2, completions_at_once=8, **limits)
    pool.load_adapter(ref)
    assert pool.generate(prompts, SAMPLING, ref, seeds(prompts)) == pairs
    assert {completion.adapter for group in pairs for completion in group.completions} == {ref.key}
    request = pool.submit(PromptBatch(prompts, SAMPLING, ref, seeds(prompts), prompts_per_piece=1))
    assert_same_but_for_rounding(pool.collect(request, 400), singles)
