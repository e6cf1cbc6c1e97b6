"""Prompts → completions, by vLLM: the only room that imports it."""

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.engine import EngineSettings
from rollout.files.durable import check_writable
from rollout.loading import loading

if TYPE_CHECKING:
    from rollout.vllm.engine import VllmEngine

# Read by vLLM when it is imported, by whichever file of this room. In its own process the engine burns a core in a busy
# wait and takes ten times longer to start; nothing may be reported to anyone from a run.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# FlashInfer's sampler cannot return the log-probabilities that every request here asks for: it would be compiled at a
# start, with a CUDA compiler, and never be called.
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
# Kernels of Triton that are no model's own, an adapter's products and what draws the next token, are the same for every
# engine. torch's compiler keeps them beside what it compiled for the one at hand, unless a place is given: an engine
# of other settings would compile them again. This is Triton's own place, found as Triton does; where it cannot be
# written, or there is no home, the compilers keep to theirs.
_KERNELS = Path(os.environ.get("TRITON_HOME", os.path.expanduser("~")), ".triton", "cache")  # noqa: PTH111
if "TRITON_CACHE_DIR" not in os.environ and _KERNELS.is_absolute():
    with contextlib.suppress(ValueError):
        check_writable(_KERNELS, "TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = str(_KERNELS)

# That Triton is missing is news on a GPU machine alone, and there vLLM itself says so.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)


def start_engine(settings: EngineSettings) -> "VllmEngine":
    """An engine in this process. To load vLLM takes seconds: what can fail before has failed. See `VllmEngine`."""
    with loading():
        from rollout.vllm.engine import VllmEngine

    return VllmEngine(settings)
