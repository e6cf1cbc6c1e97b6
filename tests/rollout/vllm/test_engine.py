"""The real sampler: it samples what it is asked for, from the adapter it is given, with the learner's logprobs."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rl_engine.learner.gap import GapLimits, SamplerGapError
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.publish import Publisher
from rollout.adapters import PEFT_WEIGHTS, AdapterError, AdapterStore, identity_of, write_manifest
from rollout.config import ArithmeticConfig, SamplingConfig
from rollout.engine import EngineError, EngineSettings, NanError
from rollout.models import locate_model
from rollout.prompts.arithmetic import arithmetic_problems
from rollout.types import AdapterRef, Problem, Prompt, RolloutGroup
from tests.helpers.batches import alternating
from tests.helpers.other_engine import sampled_elsewhere
from tests.helpers.peft_adapters import write_peft

pytestmark = pytest.mark.engine

LearnerMaker = Callable[..., Learner]
SAMPLING = SamplingConfig(n=4, temperature=1.0, max_tokens=40)
TIGHT = GapLimits(kl=1e-6, logprob=1e-3)
NAMES = itertools.count()
END_ID = 1


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    from rollout.config import PromptConfig
    from rollout.prompts.renderer import Renderer

    renderer = Renderer(AutoTokenizer.from_pretrained(locate_model("embedded")), PromptConfig(instruction=None))
    return renderer.render_all(arithmetic_problems(ArithmeticConfig(terms=(2, 4), largest=20), "train", 6, 0))


def seeds(prompts: Sequence[Prompt], occasion: str = "test") -> list[str]:
    return [f"{occasion}/{index}" for index in range(len(prompts))]


def publisher_of(learner: Learner, engine: Any, ranks: Ranks, prompts: Sequence[Prompt], root: Path) -> Publisher:
    return Publisher(
        store=AdapterStore(root / "adapters", name=f"test{next(NAMES)}"),
        engine=engine,
        learner=learner,
        ranks=ranks,
        canary=prompts[:2],
        sampling=SAMPLING,
        limits=TIGHT,
        facts={"base_model": "embedded"},
    )


def test_groups_come_in_order_with_what_a_step_needs(vllm_engine: Any, prompts: list[Prompt]) -> None:
    groups = vllm_engine.generate(prompts, SAMPLING, None, seeds(prompts))
    assert [group.prompt for group in groups] == prompts
    for completion in (c for group in groups for c in group.completions):
        assert completion.adapter == "base"
        assert 1 <= len(completion.token_ids) == len(completion.logprobs) <= SAMPLING.max_tokens
        assert all(value <= 0 for value in completion.logprobs)
        assert (completion.token_ids[-1] == END_ID) == (completion.finish_reason == "stop")
    assert all(len(group.completions) == SAMPLING.n for group in groups)
    assert any(len(set(group.completions)) > 1 for group in groups)


def test_completions_are_a_function_of_the_seed(vllm_engine: Any, prompts: list[Prompt]) -> None:
    first = vllm_engine.generate(prompts, SAMPLING, None, seeds(prompts))
    vllm_engine.generate(prompts[:3], SAMPLING, None, seeds(prompts[:3], "between"))
    assert vllm_engine.generate(prompts, SAMPLING, None, seeds(prompts)) == first
    assert vllm_engine.generate(prompts, SAMPLING, None, seeds(prompts, "other")) != first


def test_length_limit_stop_string_and_greedy(vllm_engine: Any, prompts: list[Prompt]) -> None:
    short = vllm_engine.generate(prompts, SAMPLING.model_copy(update={"max_tokens": 2}), None, seeds(prompts))
    assert {c.finish_reason for group in short for c in group.completions} == {"length"}
    stopped = vllm_engine.generate(prompts, SAMPLING.model_copy(update={"stop": ("}",)}), None, seeds(prompts))
    assert not any("}" in c.text for group in stopped for c in group.completions)
    greedy = SAMPLING.model_copy(update={"temperature": 0.0, "n": 1})
    assert vllm_engine.generate(prompts, greedy, None, seeds(prompts, "a")) == vllm_engine.generate(
        prompts, greedy, None, seeds(prompts, "b")
    )


def test_several_end_tokens_end_and_special_tokens_are_text(prompts: list[Prompt], tmp_path: Path) -> None:
    """A closing brace also ends a completion, as `<|eot_id|>` does beside the tokenizer's end token; `=` is declared
    special, as `<think>` is."""

    from rollout.models import EMBEDDED_DIR

    shutil.copytree(EMBEDDED_DIR, tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    equals, brace = (tokenizer.convert_tokens_to_ids(token) for token in "=}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["="]})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [END_ID, brace]}))
    samplings = [SAMPLING.model_copy(update={"stop": stop}) for stop in ((), ("]",))]
    for groups in sampled_elsewhere(tmp_path, prompts, samplings):
        completions = [c for group in groups for c in group.completions]
        assert any(c.token_ids[-1] == brace for c in completions)
        assert {c.finish_reason for c in completions if c.token_ids[-1] in (END_ID, brace)} == {"stop"}
        assert not any("}" in c.text or "<end>" in c.text for c in completions)
        assert any("=" in c.text for c in completions)
        assert all(c.text.count("=") == c.token_ids.count(equals) for c in completions)


@pytest.mark.parametrize("kept", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}])
def test_of_the_likeliest_token_alone_sampling_is_greedy(
    kept: dict[str, Any], vllm_engine: Any, prompts: list[Prompt]
) -> None:
    def texts(**settings: Any) -> list[str]:
        sampling = SamplingConfig(n=1, max_tokens=20, **settings)
        return [g.completions[0].text for g in vllm_engine.generate(prompts, sampling, None, seeds(prompts))]

    assert texts(temperature=1.5, **kept) == texts(temperature=0.0) != texts(temperature=1.5)


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_agree_before_and_after_an_update(
    rank: int,
    temperature: float,
    vllm_engine: Any,
    prompts: list[Prompt],
    make_learner: LearnerMaker,
    ranks: Ranks,
    tmp_path: Path,
) -> None:
    learner = make_learner(f"lora.rank={rank}", f"sampling.temperature={temperature}", "optim.lr=1e-2")
    publisher = publisher_of(learner, vllm_engine, ranks, prompts, tmp_path)
    sampling = SAMPLING.model_copy(update={"temperature": temperature})
    publisher = replace(publisher, sampling=sampling)
    before = publisher.publish(0)
    groups = vllm_engine.generate(prompts, sampling, before, seeds(prompts))
    assert {c.adapter for g in groups for c in g.completions} == {before.key}
    rows = alternating(groups)
    stats = learner.step([rows], TIGHT)
    assert stats.gap.logprob_max < 1e-4
    after = publisher.publish(1)
    rows = alternating(vllm_engine.generate(prompts, sampling, after, seeds(prompts, "after")))
    stats = learner.measure(rows, TIGHT)
    assert stats.gap.logprob_max < 1e-4
    assert stats.kl_base > 1e-3
    with pytest.raises(AdapterError, match="not loaded"):
        vllm_engine.generate(prompts, sampling, before, seeds(prompts))
    vllm_engine.unload_adapter(after)


def test_an_adapter_of_the_output_embedding_reaches_the_sampler(
    vllm_engine: Any, prompts: list[Prompt], make_learner: LearnerMaker, ranks: Ranks, tmp_path: Path
) -> None:
    """In this model it is tied to the input embedding, which must not change."""
    learner = make_learner("lora.targets=all+lm_head", "lora.rank=2", "optim.lr=1e-2")
    publisher = publisher_of(learner, vllm_engine, ranks, prompts, tmp_path)
    before = publisher.publish(0)
    learner.step([alternating(vllm_engine.generate(prompts, SAMPLING, before, seeds(prompts)))], TIGHT)
    assert learner.weights()["base_model.model.lm_head.lora_B.weight"].any()
    after = publisher.publish(1)
    rows = alternating(vllm_engine.generate(prompts, SAMPLING, after, seeds(prompts, "after")))
    stats = learner.measure(rows, TIGHT)
    assert stats.gap.logprob_max < 1e-4
    assert stats.kl_base > 1e-3
    vllm_engine.unload_adapter(after)


def test_names_are_never_reused_and_damage_is_refused(
    vllm_engine: Any, prompts: list[Prompt], make_learner: LearnerMaker, ranks: Ranks, tmp_path: Path
) -> None:
    ref = publisher_of(make_learner(), vllm_engine, ranks, prompts, tmp_path).publish(0)
    with pytest.raises(AdapterError, match="never reused"):
        vllm_engine.load_adapter(ref)
    vllm_engine.unload_adapter(ref)
    other = replace(ref, name="announced", sha256="0" * 64)
    with pytest.raises(AdapterError, match="published anew"):
        vllm_engine.load_adapter(other)
    (ref.path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="sha256 differs"):
        vllm_engine.load_adapter(replace(ref, name="damaged"))


def test_weights_that_would_have_to_be_unpickled_are_refused(vllm_engine: Any, tmp_path: Path) -> None:
    """vLLM reads adapter_model.bin if there is no safetensors file."""
    torch.save({"w": torch.ones(1)}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text("{}")
    write_manifest(tmp_path, {"name": "foreign", "version": 0})
    ref = AdapterRef(name="foreign", version=0, path=tmp_path, sha256=identity_of(tmp_path), rank=1)
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        vllm_engine.load_adapter(ref)


@dataclass
class StaleEngine:
    """A sampler that answers from the first adapter that it ever loaded, whatever it is told to load."""

    inner: Any
    first: AdapterRef | None = field(default=None)

    def load_adapter(self, ref: AdapterRef) -> None:
        if self.first is None:
            self.inner.load_adapter(ref)
            self.first = ref

    def unload_adapter(self, ref: AdapterRef) -> None:
        pass

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        answer: list[RolloutGroup] = self.inner.generate(prompts, sampling, self.first, seeds)
        return answer


@pytest.fixture
def stale(vllm_engine: Any) -> Iterator[StaleEngine]:
    engine = StaleEngine(vllm_engine)
    yield engine
    if engine.first is not None:
        vllm_engine.unload_adapter(engine.first)


@pytest.mark.parametrize("largest_gap", [1e-3, 1e9], ids=["by the gap", "by standing still"])
def test_the_canary_catches_a_sampler_that_keeps_the_old_adapter(
    largest_gap: float,
    stale: StaleEngine,
    vllm_engine: Any,
    prompts: list[Prompt],
    make_learner: LearnerMaker,
    ranks: Ranks,
    tmp_path: Path,
) -> None:
    learner = make_learner("optim.lr=1e-2")
    publisher = replace(
        publisher_of(learner, stale, ranks, prompts, tmp_path), limits=replace(TIGHT, logprob=largest_gap)
    )
    ref = publisher.publish(0)
    rows = alternating(stale.generate(prompts, SAMPLING, ref, seeds(prompts)))
    learner.step([rows], TIGHT)
    with pytest.raises(SamplerGapError, match=r"did not reach the sampler|answers exactly as the version before"):
        publisher.publish(1)


def test_an_adapter_of_which_vllm_leaves_out_a_layer_is_refused(
    vllm_engine: Any, prompts: list[Prompt], make_learner: LearnerMaker, ranks: Ranks, tmp_path: Path
) -> None:
    """vLLM itself warns at start-up, and samples as if the adapter did not have the layer. The first step would not
    reveal it, since B is zero."""
    ref = publisher_of(make_learner(), vllm_engine, ranks, prompts, tmp_path).publish(0)
    path, taken = "model.layers.1.mlp.down_proj", {}
    vllm_engine._llm.apply_model(lambda model: taken.update({path: model.lora_manager.modules.pop(path)}))
    try:
        with pytest.raises(AdapterError, match=rf"adapts {path}, for which .* supports no adapter \(1 such"):
            vllm_engine.load_adapter(replace(ref, name="left_out"))
    finally:
        vllm_engine._llm.apply_model(lambda model: model.lora_manager.modules.update(taken))
    vllm_engine.load_adapter(again := replace(ref, name="left_out"))
    for loaded in (ref, again):
        vllm_engine.unload_adapter(loaded)


def test_an_adapter_that_did_not_change_passes_the_canary(
    vllm_engine: Any, prompts: list[Prompt], make_learner: LearnerMaker, ranks: Ranks, tmp_path: Path
) -> None:
    publisher = publisher_of(make_learner(), vllm_engine, ranks, prompts, tmp_path)
    publisher.publish(0)
    ref = publisher.publish(1)
    vllm_engine.unload_adapter(ref)


def test_a_prompt_of_unknown_characters_is_answered_all_the_same(vllm_engine: Any) -> None:
    strange = Prompt(problem=Problem(id="x", text="é", answer="1"), text="é\n", token_ids=(2, 3))
    (group,) = vllm_engine.generate([strange], SAMPLING, None, ["x"])
    assert len(group.completions) == SAMPLING.n


CARD_IS_FULL = "CUDA out of memory occurred when warming up sampler with 512 dummy requests.\nMore of it"
HOST_IS_FULL = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to get 9 bytes."


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError(CARD_IS_FULL), r"CUDA out of memory .* requests\. To need less memory, lower its "),
        (RuntimeError(HOST_IS_FULL), r".*: you tried to get 9 bytes\. To need less memory, lower its "),
        (subprocess.CalledProcessError(127, "lscpu --json"), "Command 'lscpu --json' .* On a CPU it needs lscpu"),
    ],
    ids=["card", "host", "lscpu"],
)
def test_a_start_that_fails_says_what_it_lacks(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rollout.vllm import engine

    def fails(**_: Any) -> None:
        raise error

    monkeypatch.setattr(engine, "LLM", fails)
    settings = EngineSettings(model=locate_model("embedded"), dtype="float32", max_model_len=64, lora_rank=0)
    with pytest.raises(EngineError, match=f"^vLLM did not start: {told}"):
        engine.VllmEngine(settings)


@dataclass
class Sleeper:
    """Stands in for vLLM's LLM: it can sleep, wake and end, and is its own engine, core and tokenizer."""

    has_room: bool = True
    asleep: bool = False
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.llm_engine = self.engine_core = self

    def get_tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(locate_model("embedded"))

    def is_sleeping(self) -> bool:
        return self.asleep

    def sleep(self, level: int) -> None:
        self.asleep = True

    def wake_up(self) -> None:
        self.calls.append("wake")
        if not self.has_room:
            raise RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp:163")
        self.asleep = False

    def shutdown(self) -> None:
        self.calls.append("asleep" if self.asleep else "ended awake")


def test_an_error_in_the_samplers_code_is_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """PhiMoE, served by another class than its own, ended in `error: too many values to unpack (expected 3)`."""
    from rollout.vllm import engine

    def step(_: Sleeper) -> None:
        raise ValueError("too many values to unpack (expected 3)")

    monkeypatch.setattr(engine, "LLM", lambda **_: Sleeper())
    monkeypatch.setattr(Sleeper, "step", step, raising=False)
    made = engine.VllmEngine(
        EngineSettings(model=locate_model("embedded"), dtype="float32", max_model_len=64, lora_rank=0)
    )
    with pytest.raises(RuntimeError, match=r"^vLLM failed while it sampled: too many values"):
        made._step()


def test_a_model_that_computes_nan_is_not_one_that_knows_nothing() -> None:
    """vLLM answers token 0 where it computes NaN, and `evals` reported 0.0 % for a checkpoint full of NaN."""
    from rollout.vllm.outputs import completion, scores

    sampled = SimpleNamespace(
        finish_reason="length", token_ids=[7, 0], logprobs=SimpleNamespace(logprobs=[-0.5, math.nan])
    )
    with pytest.raises(EngineError, match=r"^the sampler computed NaN with policy-v000003: its weights or the base"):
        completion(sampled, "policy-v000003", "7")
    flat = SimpleNamespace(logprobs=[None, -0.1, -0.1, math.nan, math.nan], token_ids=[5, 7, 7, 0, 0])
    with pytest.raises(EngineError, match=r"^the sampler computed NaN with base: "):
        scores(flat, [7, 0], "base")


def test_a_batch_of_nan_ends_alone(vllm_engine: Any, prompts: list[Prompt], tmp_path: Path) -> None:
    """Of several runs that share an engine all ended with the one that diverged; and the batch after it computed NaN as
    well, in blocks of keys and values that it had filled."""
    write_peft(tmp_path)
    weights = {name: one + math.nan for name, one in load_file(tmp_path / PEFT_WEIGHTS).items()}
    save_file(weights, tmp_path / PEFT_WEIGHTS)
    ref = AdapterRef(name="diverged", version=0, path=tmp_path, sha256=identity_of(tmp_path), rank=2)
    expected = vllm_engine.generate(prompts, SAMPLING, None, seeds(prompts))
    vllm_engine.load_adapter(ref)
    diverged, beside = (vllm_engine.begin(prompts, SAMPLING, one, seeds(prompts)) for one in (ref, None))
    while not (diverged.done and beside.done):
        vllm_engine.advance()
    vllm_engine.unload_adapter(ref)
    assert len(beside.groups()) == len(prompts)
    with pytest.raises(NanError, match=r"^the sampler computed NaN with diverged-v000000: "):
        diverged.groups()
    assert vllm_engine.generate(prompts, SAMPLING, None, seeds(prompts)) == expected


@pytest.mark.parametrize(
    ("sleeps", "has_room", "calls"),
    [(True, True, ["wake", "ended awake"]), (True, False, ["wake", "asleep"]), (False, True, ["ended awake"])],
)
def test_what_ends_is_awake_where_there_is_room(
    sleeps: bool, has_room: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped while its learner works finds the sampler asleep."""
    from rollout.vllm import engine

    sleeper = Sleeper(has_room=has_room)
    monkeypatch.setattr(engine, "LLM", lambda **_: sleeper)
    made = engine.VllmEngine(
        EngineSettings(model=locate_model("embedded"), dtype="float32", max_model_len=64, lora_rank=0, sleep=sleeps)
    )
    made.sleep()
    made.close()
    assert sleeper.calls == calls
