"""Prompts → completions, sampled by vLLM inside this process."""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform
    from vllm.v1.engine.exceptions import EngineDeadError

from datafiles.text import first_line
from rollout.adapters import (
    MANIFEST,
    PEFT_WEIGHTS,
    AdapterError,
    identity_of,
    is_whole_model,
    read_manifest,
    stated_manifest,
)
from rollout.config import SamplingConfig
from rollout.engine import EngineError, EngineSettings, InFlight, NanError, sample_seed
from rollout.models import check_every_weight, read_model_config
from rollout.segments import is_unfinished, joined
from rollout.servable import why_not
from rollout.types import BASE, AdapterRef, Completion, Prompt, RolloutGroup, TokenScores
from rollout.vllm.arguments import engine_arguments, lora_arithmetic
from rollout.vllm.decoder import Decoder
from rollout.vllm.outputs import completion, scores
from rollout.vllm.patches import patch_vllm

patch_vllm()

# How vLLM and torch report that a card or the machine is out of memory.
NO_MEMORY = re.compile("out of memory|allocate memory")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request given to vLLM, and the completion of which batch it is."""

    batch: InFlight
    place: int
    sampling: SamplingConfig
    key: str


@dataclass
class VllmEngine:
    """One vLLM engine in this process: the base model and the adapters loaded so far."""

    settings: EngineSettings
    _llm: Any = field(init=False, repr=False)
    _loaded: dict[str, LoRARequest] = field(default_factory=dict, init=False, repr=False)
    _ids_given: int = field(init=False, repr=False)
    """vLLM's id of the newest adapter. Ids are never reused, and differ from those that vLLM uses to warm up."""
    _asked: dict[str, _Asked] = field(default_factory=dict, init=False, repr=False)
    """The requests in progress, by vLLM's request number."""
    _done: list[InFlight] = field(default_factory=list, init=False, repr=False)
    """Finished batches that `advance` has not returned yet."""
    _decoder: Decoder = field(init=False, repr=False)
    _weights: str = field(default=BASE, init=False, repr=False)
    """Key of the version whose full weights are loaded."""

    def __post_init__(self) -> None:
        place, revision = self.settings.model, self.settings.revision
        check_every_weight(read_model_config(place, revision, place), place, revision, place)
        with warnings.catch_warnings(), lora_arithmetic(self.settings):
            warnings.simplefilter("ignore", FutureWarning)
            try:
                self._llm = LLM(**engine_arguments(self.settings))
            except (ValueError, NotImplementedError, AssertionError, AttributeError, LookupError, ImportError) as error:
                raise why_not(error, self.settings.model) from error
            except subprocess.CalledProcessError as error:
                raise EngineError(f"vLLM did not start: {error} On a CPU it needs lscpu, of util-linux") from error
            except RuntimeError as error:  # from torch, or from vLLM in its own words
                message = first_line(error).rstrip(".")
                if not NO_MEMORY.search(message):
                    raise
                share = "cache (kv_cache_gib)" if current_platform.is_cpu() else "share of the card (memory_fraction)"
                raise EngineError(
                    f"vLLM did not start: {message}. To need less memory, lower its {share}, or how much it samples at "
                    "once (max_num_seqs)"
                ) from error
        self._ids_given = self.settings.max_loras
        self._decoder = Decoder.of(self._llm.get_tokenizer())

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `Engine.generate`."""
        return self._finished(self.begin(prompts, sampling, adapter, seeds))

    def extend(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `ExtendingEngine.extend`."""
        return self._finished(self.begin_extending(groups, sampling, adapter, seeds))

    def begin(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        """See `StreamingEngine.begin`. Every completion is a separate request with its own seed."""
        rows = [
            (prompt.token_ids, _sampling_params(sampling, sample_seed(seed, i)))
            for prompt, seed in zip(prompts, seeds, strict=True)
            for i in range(sampling.n)
        ]

        def grouped(completions: list[Completion]) -> list[RolloutGroup]:
            starts = range(0, len(completions), sampling.n)
            return [
                RolloutGroup(prompt=prompt, completions=tuple(completions[start : start + sampling.n]))
                for prompt, start in zip(prompts, starts, strict=True)
            ]

        return self._begin(rows, sampling, adapter, grouped)

    def begin_extending(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        """See `StreamingEngine.begin_extending`. The prompt and the tokens so far are prefilled again: the KV cache of
        another version is not valid for this one."""
        unfinished = [
            (row, sample)
            for row, group in enumerate(groups)
            for sample, completion in enumerate(group.completions)
            if is_unfinished(completion, sampling.max_tokens)
        ]
        contexts = []
        for row, sample in unfinished:
            tokens = groups[row].completions[sample].token_ids
            params = _sampling_params(sampling, sample_seed(seeds[row], sample, len(tokens)), len(tokens))
            contexts.append((groups[row].prompt.token_ids + tokens, params))

        def whole(segments: list[Completion]) -> list[RolloutGroup]:
            rows = [list(group.completions) for group in groups]
            for (row, sample), segment in zip(unfinished, segments, strict=True):
                rows[row][sample] = joined(rows[row][sample], segment, sampling.stop, self._decoder.text)
            return [replace(group, completions=tuple(row)) for group, row in zip(groups, rows, strict=True)]

        return self._begin(contexts, sampling, adapter, whole)

    def _begin(
        self,
        rows: Sequence[tuple[Sequence[int], Any]],
        sampling: SamplingConfig,
        adapter: AdapterRef | None,
        assemble: Callable[[list[Completion]], list[RolloutGroup]],
    ) -> InFlight:
        """Request a continuation of each context from vLLM, each with its own sampling parameters."""
        request = self._request_of(adapter)
        if not self._asked:
            # Cached blocks depend on earlier calls. Without them a resumed run computes exactly what an uninterrupted
            # run does.
            self._llm.reset_prefix_cache()
        numbers = self._llm.enqueue(
            [{"prompt_token_ids": list(context)} for context, _ in rows],
            [params for _, params in rows],
            lora_request=request,
            use_tqdm=False,
        )
        batch = InFlight(len(rows), assemble)
        key = adapter.key if adapter else BASE
        # vLLM appends letters to the request numbers it returns here, but its outputs carry the bare numbers.
        counts = (number.partition("-")[0] for number in numbers)
        self._asked |= {count: _Asked(batch, place, sampling, key) for place, count in enumerate(counts)}
        return batch

    def advance(self) -> list[InFlight]:
        """See `StreamingEngine.advance`.

        Raises `EngineError` if vLLM runs out of memory or one of its processes dies.
        """
        if self._asked:  # with processes of its own, vLLM would wait forever if nothing was requested
            self._step()
        done, self._done = self._done, []
        return done

    def _finished(self, batch: InFlight) -> list[RolloutGroup]:
        """Sample until this batch is done; `advance` will not return it."""
        while not batch.done:
            self._step()
        self._done = [other for other in self._done if other is not batch]
        return batch.groups()

    def _step(self) -> None:
        try:
            outputs = self._llm.llm_engine.step()
        except (RuntimeError, TimeoutError, EngineDeadError) as error:
            # With one process per card, vLLM gives no better error than this when one of them dies.
            alone = self.settings.tensor_parallel_size == 1
            if alone and not isinstance(error, torch.OutOfMemoryError | EngineDeadError):
                raise
            raise EngineError(f"vLLM failed while it sampled: {error}") from error
        except ValueError as error:  # in its own code; commands would report it as a mistake of the user's, in a line
            raise RuntimeError(f"vLLM failed while it sampled: {error}") from error
        for output in outputs:
            if (asked := self._asked.pop(output.request_id, None)) is None:
                continue  # of a batch that was given up in this step
            (sampled,) = output.outputs
            text = self._decoder.spoken(sampled, stops=bool(asked.sampling.stop))
            try:
                asked.batch.take(asked.place, completion(sampled, asked.key, text))
            except NanError as error:
                self._give_up(asked.batch, error)
            if asked.batch.done:
                self._done.append(asked.batch)

    def _give_up(self, batch: InFlight, error: NanError) -> None:
        """Sample no more of a batch, which another run's adapter may sample beside it, and remove what it left."""
        batch.fail(error)
        left = [request for request, asked in self._asked.items() if asked.batch is batch]
        for request in left:
            del self._asked[request]
        self._llm.llm_engine.abort_request(left)
        self._llm.collective_rpc(_clear_nan)

    def score(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: AdapterRef | None
    ) -> list[TokenScores]:
        """See `ScoringEngine.score`. vLLM uses no cached blocks for such a request, so every row is computed whole."""
        assert not self._asked, "nothing is scored while something is sampled"
        request = self._request_of(adapter)
        room = self.settings.max_model_len - 1  # vLLM always generates one more token
        for context, continuation in rows:
            if not context or not continuation:
                raise ValueError("a row to score needs a token of context and one to score")
            if len(context) + len(continuation) > room:
                raise ValueError(
                    f"a row to score has {len(context) + len(continuation):,} tokens; the engine has room for {room:,}"
                )
        outputs = self._llm.generate(
            [{"prompt_token_ids": [*context, *continuation]} for context, continuation in rows],
            SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, flat_logprobs=True, detokenize=False),
            lora_request=request,
            use_tqdm=False,
        )
        weights = adapter.key if adapter else BASE
        return [scores(output.prompt_logprobs, row[1], weights) for output, row in zip(outputs, rows, strict=True)]

    def load_adapter(self, ref: AdapterRef) -> None:
        """See `Engine.load_adapter`. vLLM identifies adapters by name and id, so neither is ever reused."""
        if ref.key in self._loaded:
            raise AdapterError(f"{ref.key} is already loaded: names are never reused")
        if identity_of(ref.path) != ref.sha256:
            raise AdapterError(f"{ref.path} was published anew since {ref.key} was announced")
        if (ref.path / MANIFEST).is_file():
            whole = is_whole_model(stated_manifest(ref.path))
            if not (whole and self.settings.models_are_checked):
                read_manifest(ref.path)
            if whole:
                self._load_weights(ref)
                return
        if not (ref.path / PEFT_WEIGHTS).is_file():
            # vLLM would try formats that have to be unpickled.
            raise AdapterError(f"{ref.path} has no {PEFT_WEIGHTS}: weights in another format are not read")
        self._ids_given += 1
        request = LoRARequest(ref.key, self._ids_given, str(ref.path))
        self._llm.llm_engine.add_lora(request)
        if request.lora_int_id not in self._llm.llm_engine.list_loras():
            raise AdapterError(f"vLLM did not load {ref.path}")
        (left_out, *_) = self._llm.apply_model(functools.partial(_left_out, number=request.lora_int_id))
        if left_out:
            self._llm.llm_engine.remove_lora(request.lora_int_id)
            raise AdapterError(
                f"{ref.path} adapts {left_out[0]}, for which vLLM's model supports no adapter ({len(left_out)} such "
                "layers): it would sample without them"
            )
        self._loaded[ref.key] = request

    def _load_weights(self, ref: AdapterRef) -> None:
        """Replace all of the model's weights with a version's."""
        on_cpu = not torch.cuda.is_available()
        if on_cpu:
            self._llm.apply_model(_forget_packed_experts)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(ref.path)})
        if on_cpu:
            self._llm.apply_model(_repack_tied_head)
            (kept, *_) = self._llm.apply_model(_experts_not_packed)
            if kept:
                raise AdapterError(f"vLLM does not replace {kept[0]} in models of this type: use one of another type")
        self._weights = ref.key

    def unload_adapter(self, ref: AdapterRef) -> None:
        if ref.key not in self._loaded:
            return  # a whole model, which the next version has already replaced
        # vLLM may have evicted it already to make room; that does not matter.
        self._llm.llm_engine.remove_lora(self._loaded.pop(ref.key).lora_int_id)

    def sleep(self) -> None:
        if self.settings.sleep:
            self._llm.sleep(level=1)

    def wake(self) -> None:
        if self.settings.sleep:
            self._llm.wake_up()

    def close(self) -> None:
        """Shut down the engine and its part of the process group; call it before leaving the group itself.

        A sleeping engine is woken first: otherwise vLLM frees the memory of sleeping allocations a second time, and an
        error from CUDA is printed for each. If the learner leaves too little memory to wake in, only that happens.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(RuntimeError, EngineDeadError):
                if self.settings.sleep and self._llm.llm_engine.is_sleeping():
                    self.wake()
            self._llm.llm_engine.engine_core.shutdown()

    def _request_of(self, adapter: AdapterRef | None) -> LoRARequest | None:
        if (adapter.key if adapter else BASE) == self._weights:
            return None
        if adapter is None:
            raise AdapterError(f"this engine no longer holds the base model: {self._weights} has replaced it")
        if adapter.key not in self._loaded:
            raise AdapterError(f"{adapter.key} is not loaded; loaded are {sorted(self._loaded) or 'none'}")
        return self._loaded[adapter.key]


def _left_out(model: Any, number: int) -> list[str]:
    """Layers of a loaded adapter that vLLM's model lacks. Experts are not considered: vLLM stacks them under other
    names."""
    manager = model.lora_manager
    return sorted(
        name for name in manager.get_adapter(number).loras if name not in manager.modules and ".experts" not in name
    )


def _clear_nan(worker: Any) -> None:
    """Remove NaN from the memory of keys and values. In a block that a sequence fills in part, a CPU's attention
    multiplies what an earlier sequence left in the rest by zero, and NaN stays NaN."""
    for cache in worker.model_runner.kv_caches:
        for part in cache if isinstance(cache, list | tuple) else [cache]:
            part.nan_to_num_()


def _forget_packed_experts(model: Any) -> None:
    """Have reloaded experts packed anew for the CPU: vLLM packs them only when it makes their kernel, and would copy
    later weights as they are into the packed ones."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if hasattr(method, "moe_kernel"):
            method.moe_kernel = None


def _experts_not_packed(model: Any) -> list[str]:
    """Experts that were not packed since `_forget_packed_experts`: vLLM does not see that GPT-OSS reloads its own."""
    methods = ((path, getattr(module, "quant_method", None)) for path, module in model.named_modules())
    return [path for path, method in methods if getattr(method, "moe_kernel", method) is None and method is not None]


def _repack_tied_head(model: Any) -> None:
    """Rebuild the CPU's packed copy of an output head that is tied to the input embedding: reloading does not. Some
    families have no such head and use the embedding itself (Gemma 2, Cohere)."""
    if model.config.get_text_config().tie_word_embeddings and hasattr(model, "lm_head"):
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)


def _sampling_params(sampling: SamplingConfig, seed: int, start: int = 0) -> SamplingParams:
    """The sampling parameters for what follows the first `start` tokens of a completion."""
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or 0,
        min_p=sampling.min_p,
        max_tokens=sampling.max_tokens - start,
        stop=list(sampling.stop),
        seed=seed if sampling.temperature > 0 else None,
        logprobs=0,
        # Building text and objects for every token at every step takes an eighth of a small model's sampling time.
        # Only stop strings need the text while sampling; otherwise it is decoded once, at the end.
        flat_logprobs=True,
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
    )
