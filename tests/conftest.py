"""Shared fixtures: the process group, vLLM engines, a grader, and small builders.

Heavy libraries are imported by the fixtures: pytest-xdist's main process loads this file too, and runs no test.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rollout.loading import loading
from rollout.pool.environment import prepare_ray

if TYPE_CHECKING:
    from rewards import Grader
    from rl_engine.config import Config
    from rl_engine.learner.batching import TrainingSample
    from rl_engine.learner.learner import Learner
    from rl_engine.learner.ranks import Ranks
    from tests.helpers.forgetting import Policies

# Before torch is loaded, and for every process that the tests start: on two cores, one thread each is twice as fast as
# two. Accelerate warns where nothing is set, which would fail the supervised runs after any test with ranks.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A background job of a shell without job control ignores SIGINT, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LARGEST_TEST_RANK = 8
# Files with tests that take minutes run first, so that no worker is left alone with one of them at the end.
LONGEST = (
    *("test_ranks.py", "test_train.py", "test_doctor.py", "test_page.py", "test_together.py", "test_stop.py"),
    *("test_concurrent.py", "test_memory.py", "test_full.py", "test_run.py"),
    *("test_workers.py", "test_schedule.py", "test_refusals.py"),
)


def pytest_configure() -> None:
    """Set Ray's environment variables early: vLLM imports Ray, which reads them on import."""
    prepare_ray(None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect inside `loading`: in each pytest process, the imports of the test modules happen here."""
    with loading():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Collect each test module's garbage once and freeze the rest: libraries collect often, and an engine that ends
    unfreezes everything."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real problem files; skips the test if it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared problem files are not here")
    return SHARED


@pytest.fixture(scope="session")
def device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    from rl_engine.learner.ranks import join_ranks

    joined = join_ranks()
    with pytest.MonkeyPatch.context() as patch:
        # A command run in this process must not leave the process group that the session's engine uses.
        patch.setattr("rl_engine.learner.ranks.leave_ranks", lambda: None)
        yield joined


@pytest.fixture
def warm_graders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every grader that the test opens in this process starts warm."""
    from rewards.workers import pool
    from tests.helpers import warm_graders

    monkeypatch.setattr(pool, "ForkServerProcess", warm_graders.WarmForkServer)
    monkeypatch.setattr(warm_graders.WarmForkServer, "at", warm_graders.warm_at())


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    from rewards import Grader

    # No test waits for the limit, and a busy machine may take seconds over a limit or an integral.
    with Grader(workers=2, timeout_s=60.0) as grader:
        yield grader


@pytest.fixture(scope="session")
def vllm_engine(ranks: Ranks, device_type: str) -> Iterator[Any]:
    """The real sampler on the embedded model, started once. It depends on `ranks` so that it is closed first."""
    from rollout.engine import EngineSettings
    from rollout.models import EMBEDDED_DIR
    from rollout.servable import precision_of
    from rollout.vllm.engine import VllmEngine

    engine = VllmEngine(
        EngineSettings(
            model=str(EMBEDDED_DIR),
            dtype=precision_of("auto", device_type),
            max_model_len=128,
            lora_rank=LARGEST_TEST_RANK,
            max_num_seqs=64,
            kv_cache_gib=0.25,
            # Leaves room for the other engines that tests start.
            memory_fraction=0.1,
        )
    )
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def whole_model_engine(ranks: Ranks) -> Iterator[Any]:
    """A sampler of the embedded model without adapters. It is never closed: closing one engine destroys the process
    group that the other uses."""
    from rollout.engine import EngineSettings
    from rollout.models import EMBEDDED_DIR
    from rollout.vllm.engine import VllmEngine

    engine = VllmEngine(
        EngineSettings(
            model=str(EMBEDDED_DIR), dtype="float32", max_model_len=128, lora_rank=0, max_num_seqs=64, kv_cache_gib=0.25
        )
    )
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The embedded model's tokenizer."""
    from transformers import AutoTokenizer

    from rollout.models import EMBEDDED_DIR

    return AutoTokenizer.from_pretrained(EMBEDDED_DIR)


@pytest.fixture(scope="module")
def policies(vllm_engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    """Adapters loaded into the engine, with the same models in transformers and PEFT."""
    from tests.helpers.forgetting import loaded_policies

    with loaded_policies(vllm_engine, tmp_path_factory.mktemp("policies")) as policies:
        yield policies


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The interface to lm_eval, with its own dataset cache; skips the test if lm_eval is not installed."""
    pytest.importorskip("lm_eval")
    import datasets

    import evals.forgetting.harness

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return evals.forgetting.harness


ConfigMaker = Callable[..., "Config"]


@pytest.fixture
def make_config(tmp_path: Path, device_type: str) -> ConfigMaker:
    """Makes the quickstart's configuration with overrides, in this machine's precision, writing below the test's
    temporary directory."""
    from rl_engine.config import load_config
    from rl_engine.plan.card import settle_precision

    def make(*overrides: str) -> Config:
        config = load_config("quickstart.yaml", [f"output_dir={tmp_path / 'run'}", *overrides])
        return settle_precision(config, device_type)

    return make


LearnerMaker = Callable[..., "Learner"]


@pytest.fixture
def make_learner(make_config: ConfigMaker, ranks: Ranks) -> LearnerMaker:
    from rl_engine.learner.learner import Learner

    def make(*overrides: str) -> Learner:
        return Learner(make_config(*overrides), ranks, pad_id=0)

    return make


@pytest.fixture
def samples() -> list[TrainingSample]:
    """Eight completions of different lengths, with made-up behaviour log-probabilities and advantages."""
    import torch

    from rl_engine.learner.batching import TrainingSample

    generator = torch.Generator().manual_seed(5)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 21, (count,), generator=generator).tolist())

    made = []
    for index in range(8):
        completion = tokens(3 + 2 * index)
        noise = torch.rand(len(completion), generator=generator)
        made.append(
            TrainingSample(
                prompt_ids=tokens(5 + index % 3),
                completion_ids=completion,
                behaviour_logprobs=tuple((-2.0 - noise).tolist()),
                advantage=(-1.0) ** index * (0.25 + 0.1 * index),
                weight=1 / (8 * 20),
            )
        )
    return made
