"""What is replaced in vLLM: models of transformers remain usable beside it, it starts and ends cleanly, and any token
is sampled."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from torch.distributed.rendezvous import rendezvous
from transformers import AutoModel, PreTrainedTokenizerFast
from vllm import SamplingParams
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.triton_utils import dispatcher
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import LogprobsLists

import rollout.vllm.engine  # noqa: F401  takes hold of the decorator
from tests.helpers.families import tiny_config


def test_a_decorated_class_is_plain_for_everyone_but_vllm() -> None:
    """Otherwise models made before fail with AttributeError `do_not_compile`, and for those made after there is no vLLM
    configuration."""
    kind, ids = "olmo", torch.arange(5)[None]
    before = AutoModel.from_config(tiny_config(kind)).eval()
    called = []
    before.register_forward_hook(lambda *_: called.append(True))
    cls = type(before)
    assert support_torch_compile(dynamic_arg_dims={"input_ids": 1})(cls) is cls
    expected = before(input_ids=ids).last_hidden_state
    assert called
    after = AutoModel.from_config(tiny_config(kind)).eval()
    assert not hasattr(after, "do_not_compile")
    after.load_state_dict(before.state_dict())
    assert torch.equal(after(input_ids=ids).last_hidden_state, expected)
    with set_current_vllm_config(VllmConfig()):
        theirs = AutoModel.from_config(tiny_config(kind)).eval()
    assert hasattr(theirs, "do_not_compile")
    # Decorated again, as by the next engine.
    assert support_torch_compile(dynamic_arg_dims={"input_ids": 1})(cls) is cls
    assert torch.equal(before(input_ids=ids).last_hidden_state, expected)


def test_an_engine_starts_after_numba() -> None:
    """An object of llvmlite answers to any name, and vLLM asks every object of every module for its attributes."""
    pytest.importorskip("llvmlite.binding.ffi")
    dispatcher._rebind_kernels([])


def test_an_engine_leaves_no_file_if_it_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own meeting point is a file that only its process removes, and a pool kills its workers."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    executor = object.__new__(UniProcExecutor)
    executor.vllm_config = SimpleNamespace(device_config=SimpleNamespace(device=torch.device("cpu")))
    place, rank, _ = executor._distributed_args()
    store, *_ = next(rendezvous(place, rank, 1))
    store.set("met", "yes")
    assert store.get("met") == b"yes"
    assert not [*tmp_path.iterdir()]


def test_a_token_of_the_model_alone_may_be_sampled() -> None:
    """Seen with stop strings: vLLM decoded the token by itself, and a TypeError ended an evaluation."""
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = Metaspace()
    request: Any = SimpleNamespace(sampling_params=SamplingParams(logprobs=0, flat_logprobs=True))
    processor: Any = LogprobsProcessor.from_new_request(PreTrainedTokenizerFast(tokenizer_object=words), request)
    processor._update_sample_logprobs(LogprobsLists(np.array([[5]]), np.array([[-1.0]]), np.array([0])))
    assert processor.logprobs.token_ids == [5]
