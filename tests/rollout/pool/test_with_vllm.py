"""Workers with vLLM sample exactly what the in-process engine samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl_engine.learner.learner import Learner
from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.types import Problem, Prompt
from tests.helpers.batches import LOOSE, alternating
from tests.helpers.pools import PoolMaker, seeds
from tests.helpers.same_groups import assert_same_but_for_rounding

pytestmark = [
    pytest.mark.engine,
    # Ray closes its log files when it is garbage-collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_workers_sample_what_the_engine_in_process_samples(
    make_pool: PoolMaker, make_learner: Callable[..., Learner], vllm_engine: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Bit for bit, if the batches are the same: a work item is one batch.

    Other prompts in the batch may change the rounding of a prompt's numbers, so whole work items are compared.
    """
    from rollout.vllm import start_engine as make_vllm

    problems = [
        Problem(id=str(i), text=text, answer="") for i, text in enumerate(("3+4=?", "9+8+1=?", "7-5=?", "2+2=?"))
    ]
    prompts = [Prompt(problem=p, text=p.text, token_ids=tuple(tokenizer(p.text)["input_ids"])) for p in problems]
    sampling = SamplingConfig(n=4, max_tokens=24)
    learner = make_learner("optim.lr=1e-2")
    groups = vllm_engine.generate(prompts, sampling, None, seeds(prompts))
    learner.step([alternating(groups)], LOOSE)
    weights = learner.weights()
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    store = AdapterStore(tmp_path / "adapters", name="of_the_pool")
    ref = store.publish(
        1, lambda directory: learner.trainable.write(directory, weights), {**learner.trainable.manifest_entries()}
    )
    vllm_engine.load_adapter(ref)
    alone = [
        group
        for start in (0, 2)
        for group in vllm_engine.generate(prompts[start : start + 2], sampling, ref, seeds(prompts)[start : start + 2])
    ]
    vllm_engine.unload_adapter(ref)
    pool = make_pool(vllm_engine.settings, make_vllm, workers=2, start_timeout_s=400, piece_timeout_s=400)
    pool.load_adapter(ref)
    assert pool.generate(prompts, sampling, ref, seeds(prompts)) == alone
    assert {completion.adapter for group in alone for completion in group.completions} == {ref.key}


def test_side_by_side_a_worker_samples_what_it_does_alone(
    make_pool: PoolMaker, vllm_engine: Any, tokenizer: Any
) -> None:
    """Up to rounding, which depends on the other rows of the batch."""
    from rollout.vllm import start_engine as make_vllm

    texts = ("3+4=?", "9+8+1=?", "7-5=?", "2+2=?", "8+8=?")
    problems = [Problem(id=text, text=text, answer="") for text in texts]
    prompts = [Prompt(problem=p, text=p.text, token_ids=tuple(tokenizer(p.text)["input_ids"])) for p in problems]
    sampling = SamplingConfig(n=4, max_tokens=24)
    alone = [vllm_engine.generate([p], sampling, None, seeds([p]))[0] for p in prompts]
    limits = {"start_timeout_s": 400, "piece_timeout_s": 400}
    pool = make_pool(vllm_engine.settings, make_vllm, prompts_per_piece=1, completions_at_once=12, **limits)
    assert_same_but_for_rounding(pool.generate(prompts, sampling, None, seeds(prompts)), alone)
