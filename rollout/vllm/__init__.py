"""Prompts → completions, by vLLM: the only room that imports it."""

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.engine import EngineSettings
from rollout.files.durable import check_writable
from rollout.loading import loading

if TYPE_CHECKING:
    from rollout.vllm.engine import VllmEngine


def _is_place(directory: Path) -> bool:
    """Whether files can be made there. Where there is no home, `~/…` is a name in the current directory."""
    if not directory.is_absolute():
        return False
    try:
        check_writable(directory, "cache")
    except ValueError:
        return False
    return True


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
if "TRITON_CACHE_DIR" not in os.environ and _is_place(_KERNELS):
    os.environ["TRITON_CACHE_DIR"] = str(_KERNELS)

# What vLLM has compiled, and found out of models. Where its own place cannot be written it says a page of that at each
# start, and its compiler fails at the first directory; this one goes with the process.
_FOUND_OUT = Path(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "vllm")  # noqa: PTH111
if "VLLM_CACHE_ROOT" not in os.environ and not _is_place(_FOUND_OUT):
    os.environ["VLLM_CACHE_ROOT"] = tempfile.mkdtemp(prefix="rl_engine-vllm-")
    atexit.register(shutil.rmtree, os.environ["VLLM_CACHE_ROOT"], ignore_errors=True)

# That Triton is missing is news on a GPU machine alone, and there vLLM itself says so.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)


def start_engine(settings: EngineSettings) -> "VllmEngine":
    """An engine in this process. To load vLLM takes seconds: what can fail before has failed. See `VllmEngine`."""
    with loading():
        from rollout.vllm.engine import VllmEngine

    return VllmEngine(settings)
