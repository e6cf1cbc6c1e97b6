"""Prompts → completions, by vLLM inside this process. vllm is imported here and by its two neighbours, one_adapter.py
and own_classes.py, alone."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Read by vLLM when it is imported. In its own process the engine burns a core in a busy wait and takes ten
# times longer to start; nothing may be reported to anyone from a run.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch

# That Triton is missing is news on a GPU machine alone, and there vLLM itself says so.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform
    from vllm.v1.engine.exceptions import EngineDeadError

from rollout.adapters import (
    MANIFEST,
    PEFT_WEIGHTS,
    AdapterError,
    identity_of,
    is_whole_model,
    manifest_of,
    read_manifest,
)
from rollout.config import SamplingConfig
from rollout.engine import EngineError, EngineSettings, sample_seed, smallest_allowed_rank
from rollout.own_classes import leave_transformers_alone
from rollout.segments import is_unfinished, joined
from rollout.servable import keeps_states, why_not
from rollout.types import BASE, AdapterRef, Completion, Prompt, RolloutGroup, TokenScores

GIB = 1024**3

leave_transformers_alone()


@dataclass(frozen=True, slots=True)
class _Decoder:
    """Tokens → text. Tokens that are declared special are text, such as `<think>`, but for those that frame one."""

    tokenizer: Any
    silent: dict[int, str]
    """Those that begin, end, fill up or stand for the unknown."""

    @classmethod
    def of(cls, tokenizer: Any) -> _Decoder:
        names = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
        tokens = {getattr(tokenizer, f"{name}_token_id", None): getattr(tokenizer, f"{name}_token") for name in names}
        return cls(tokenizer, {number: text for number, text in tokens.items() if number is not None})

    def text(self, token_ids: Sequence[int]) -> str:
        heard = [number for number in token_ids if number not in self.silent]
        return str(self.tokenizer.decode(heard, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def spoken(self, text: str) -> str:
        """A text with all special tokens, as vLLM makes it, without the silent ones."""
        for token in self.silent.values():
            text = text.replace(token, "")
        return text


@dataclass
class VllmEngine:
    """One vLLM engine in this process: the base model, and the adapters it was told to load."""

    settings: EngineSettings
    _llm: Any = field(init=False, repr=False)
    _loaded: dict[str, LoRARequest] = field(default_factory=dict, init=False, repr=False)
    _ids_given: int = field(default=0, init=False, repr=False)
    _decoder: _Decoder = field(init=False, repr=False)
    _weights: str = field(default=BASE, init=False, repr=False)
    """Key of the version whose whole model is loaded."""

    def __post_init__(self) -> None:
        with warnings.catch_warnings(), _lora_arithmetic(self.settings):
            warnings.simplefilter("ignore", FutureWarning)
            try:
                self._llm = LLM(**_engine_arguments(self.settings))
            except (ValueError, NotImplementedError, AssertionError) as error:
                raise why_not(error, self.settings.model) from error
        self._decoder = _Decoder.of(self._llm.get_tokenizer())

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        adapter: AdapterRef | None,
        seeds: Sequence[str],
    ) -> list[RolloutGroup]:
        """See `Engine.generate`. Every completion is a request of its own, with a seed of its own."""
        rows = [
            (prompt.token_ids, _sampling_params(sampling, sample_seed(seed, i)))
            for prompt, seed in zip(prompts, seeds, strict=True)
            for i in range(sampling.n)
        ]
        completions = self._sampled(rows, sampling, adapter)
        return [
            RolloutGroup(prompt=prompt, completions=tuple(completions[i * sampling.n : (i + 1) * sampling.n]))
            for i, prompt in enumerate(prompts)
        ]

    def extend(
        self,
        groups: Sequence[RolloutGroup],
        sampling: SamplingConfig,
        adapter: AdapterRef | None,
        seeds: Sequence[str],
    ) -> list[RolloutGroup]:
        """See `ExtendingEngine.extend`. Prompt and tokens so far are read anew: keys and values of another version
        are none of this one's."""
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
        whole = [list(group.completions) for group in groups]
        for (row, sample), segment in zip(unfinished, self._sampled(contexts, sampling, adapter), strict=True):
            whole[row][sample] = joined(whole[row][sample], segment, sampling.stop, self._decoder.text)
        return [
            replace(group, completions=tuple(completions)) for group, completions in zip(groups, whole, strict=True)
        ]

    def _sampled(
        self, rows: Sequence[tuple[Sequence[int], Any]], sampling: SamplingConfig, adapter: AdapterRef | None
    ) -> list[Completion]:
        """What follows each context, with its parameters.

        Raises `EngineError` when vLLM is out of memory, or a process of its own is gone.
        """
        request = self._request_of(adapter)
        # Blocks kept from earlier calls depend on what those calls were; without them a resumed run
        # computes what the uninterrupted one did.
        self._llm.reset_prefix_cache()
        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(context)} for context, _ in rows],
                [params for _, params in rows],
                lora_request=request,
                use_tqdm=False,
            )
        except (torch.OutOfMemoryError, EngineDeadError) as error:
            raise EngineError(f"vLLM failed while it sampled: {error}") from error
        key = adapter.key if adapter else BASE
        return [_completion(output.outputs[0], key, self._text(output.outputs[0], sampling)) for output in outputs]

    def _text(self, output: Any, sampling: SamplingConfig) -> str:
        """What was said: when a token ended the completion, that one is no part of it."""
        if sampling.stop:
            return self._decoder.spoken(output.text)
        return self._decoder.text(output.token_ids[:-1] if output.finish_reason == "stop" else output.token_ids)

    def score(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: AdapterRef | None
    ) -> list[TokenScores]:
        """See `ScoringEngine.score`. vLLM reads no cached block for such a request, so every row is computed whole."""
        request = self._request_of(adapter)
        room = self.settings.max_model_len - 1  # vLLM generates a token that nobody asked for
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
        return [_scores(output.prompt_logprobs, row[1]) for output, row in zip(outputs, rows, strict=True)]

    def load_adapter(self, ref: AdapterRef) -> None:
        """See `Engine.load_adapter`. vLLM keeps adapters apart by name and number: both are used once."""
        if ref.key in self._loaded:
            raise AdapterError(f"{ref.key} is already loaded: names are never reused")
        if identity_of(ref.path) != ref.sha256:
            raise AdapterError(f"{ref.path} was published anew since {ref.key} was announced")
        if (ref.path / MANIFEST).is_file():
            if is_whole_model(manifest_of(ref.path)):
                self._load_weights(ref)
                return
            read_manifest(ref.path)
        if not (ref.path / PEFT_WEIGHTS).is_file():
            # vLLM would go on to formats that have to be unpickled.
            raise AdapterError(f"{ref.path} has no {PEFT_WEIGHTS}: weights in another format are not read")
        self._ids_given += 1
        request = LoRARequest(ref.key, self._ids_given, str(ref.path))
        self._llm.llm_engine.add_lora(request)
        if request.lora_int_id not in self._llm.llm_engine.list_loras():
            raise AdapterError(f"vLLM did not load {ref.path}")
        self._loaded[ref.key] = request

    def _load_weights(self, ref: AdapterRef) -> None:
        """Replace the whole model's weights by a version's."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(ref.path)})
        if not torch.cuda.is_available():
            self._llm.apply_model(_repack_tied_head)
        self._weights = ref.key

    def unload_adapter(self, ref: AdapterRef) -> None:
        if ref.key not in self._loaded:
            return  # a whole model: the next one has taken its place already
        # vLLM may have dropped it already to make room: the outcome is the same.
        self._llm.llm_engine.remove_lora(self._loaded.pop(ref.key).lora_int_id)

    def sleep(self) -> None:
        if self.settings.sleep:
            self._llm.sleep(level=1)

    def wake(self) -> None:
        if self.settings.sleep:
            self._llm.wake_up()

    def close(self) -> None:
        """End the engine and its part of the process group; to be called before the group itself is left."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._llm.llm_engine.engine_core.shutdown()

    def _request_of(self, adapter: AdapterRef | None) -> LoRARequest | None:
        if (adapter.key if adapter else BASE) == self._weights:
            return None
        if adapter is None:
            raise AdapterError(f"the base model is gone from this engine: {self._weights} took its place")
        if adapter.key not in self._loaded:
            raise AdapterError(f"{adapter.key} is not loaded; loaded are {sorted(self._loaded) or 'none'}")
        return self._loaded[adapter.key]


def _repack_tied_head(model: Any) -> None:
    """Rebuild the CPU's packed copy of an output embedding that is tied to the input's: reloading forgets it."""
    if model.config.tie_word_embeddings:
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)


def _engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": settings.model,
        "revision": settings.revision,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        # The log-probability under what was really sampled from: after temperature and truncation.
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        # Of a model that also sees or hears, what reads alone; nothing else of it is loaded.
        "language_model_only": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if settings.lora_rank:
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": smallest_allowed_rank(settings.lora_rank),
            "max_loras": settings.max_loras,
        }
    if settings.ranks > 1:
        arguments["distributed_executor_backend"] = "external_launcher"
    if torch.cuda.is_available():
        arguments |= {
            "gpu_memory_utilization": settings.memory_fraction,
            "enable_sleep_mode": settings.sleep,
        }
    else:
        arguments |= {
            "kv_cache_memory_bytes": int(settings.kv_cache_gib * GIB),
            # vLLM never compiles a CPU model that takes adapters. One without would take a compiler and a minute at
            # its first start, and both methods are to run the same arithmetic.
            "enforce_eager": True,
            # A generator of the CPU cannot be moved to the middle of a prompt: seeds need whole prefills,
            # and whole prefills need a budget that the longest prompt fits into.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(8192, settings.max_model_len),
            # A group's samples share the whole blocks of their prompt; in vLLM's blocks of 128 few prompts have one.
            # The smallest that its attention serves at full speed.
            "block_size": 32,
        }
        if keeps_states(AutoConfig.from_pretrained(settings.model, revision=settings.revision)):
            # What such layers keep of a prompt can be shared in parts of a prefill alone, and here those are whole.
            arguments |= {"enable_prefix_caching": False}
    if _multiplies_itself(settings) and settings.dtype == "float32":
        from rollout.one_adapter import KERNELS

        arguments |= KERNELS
    return arguments


def _multiplies_itself(settings: EngineSettings) -> bool:
    """Whether `rollout/one_adapter.py` serves this engine."""
    return bool(settings.one_adapter and settings.max_loras == 1 and current_platform.is_cpu())


@contextlib.contextmanager
def _lora_arithmetic(settings: EngineSettings) -> Iterator[None]:
    """While an engine is built inside, its CPU platform names our class when asked which one multiplies adapters.

    Engines that start processes of their own (tensor parallel) ask there, and get vLLM's class.
    """
    if not _multiplies_itself(settings):
        yield
        return
    current_platform.get_punica_wrapper = lambda: "rollout.one_adapter.OneAdapterWrapper"
    try:
        yield
    finally:
        del current_platform.get_punica_wrapper


def _sampling_params(sampling: SamplingConfig, seed: int, start: int = 0) -> SamplingParams:
    """The parameters of what follows `start` tokens of a completion."""
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or 0,
        min_p=sampling.min_p,
        max_tokens=sampling.max_tokens - start,
        stop=list(sampling.stop),
        seed=seed if sampling.temperature > 0 else None,
        logprobs=0,
        # Text and objects made for every token at every step take an eighth of a small model's sampling time.
        # Only stop strings need the text on the way; else it is made once, in the end.
        flat_logprobs=True,
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
    )


def _scores(flat: Any, continuation: Sequence[int]) -> TokenScores:
    """Two entries a position: the token that is there, and the likeliest."""
    logprobs, token_ids = (values[-2 * len(continuation) :] for values in (flat.logprobs, flat.token_ids))
    assert token_ids[::2] == list(continuation)
    return TokenScores(
        logprobs=tuple(logprobs[::2]),
        greedy=tuple(here == best for here, best in zip(token_ids[::2], token_ids[1::2], strict=True)),
    )


def _completion(output: Any, adapter: str, text: str) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a completion with {output.finish_reason!r}")
    return Completion(
        text=text,
        token_ids=tuple(output.token_ids),
        logprobs=tuple(output.logprobs.logprobs),
        finish_reason=output.finish_reason,
        adapter=adapter,
    )
