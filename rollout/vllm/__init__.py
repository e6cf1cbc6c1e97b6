"""Prompts → completions, sampled by vLLM: the only room that imports it."""

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
    """Whether files can be created there. Without a home directory, `~/…` is a relative path."""
    if not directory.is_absolute():
        return False
    try:
        check_writable(directory, "cache")
    except ValueError:
        return False
    return True


# vLLM reads these when any file of this room imports it. In a separate process the engine would occupy a core with busy
# waiting and take ten times longer to start. A run must not report usage statistics to anyone.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# FlashInfer's sampler cannot return log-probabilities, which every request here asks for: it would be compiled at
# start-up, with a CUDA compiler, and never be called.
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
# Triton kernels that do not depend on the model, such as those for adapters and for sampling, are the same for every
# engine. Unless a cache directory is set, torch's compiler stores them with what it compiled for the current engine,
# and an engine with other settings would compile them again. This is Triton's default directory, found as Triton finds
# it; if it is not writable, or there is no home directory, the compilers keep their own.
_KERNELS = Path(os.environ.get("TRITON_HOME", os.path.expanduser("~")), ".triton", "cache")  # noqa: PTH111
if "TRITON_CACHE_DIR" not in os.environ and _is_place(_KERNELS):
    os.environ["TRITON_CACHE_DIR"] = str(_KERNELS)

# vLLM's cache of compiled code and model information. If its default directory is not writable, vLLM prints a page of
# errors at each start and its compiler fails; the temporary directory used instead is deleted at exit.
_FOUND_OUT = Path(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "vllm")  # noqa: PTH111
if "VLLM_CACHE_ROOT" not in os.environ and not _is_place(_FOUND_OUT):
    os.environ["VLLM_CACHE_ROOT"] = tempfile.mkdtemp(prefix="rl_engine-vllm-")
    atexit.register(shutil.rmtree, os.environ["VLLM_CACHE_ROOT"], ignore_errors=True)

# A missing Triton only matters on a GPU machine, and there vLLM itself reports it.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)


def start_engine(settings: EngineSettings) -> "VllmEngine":
    """Start an engine in this process; see `VllmEngine`. Importing vLLM takes seconds: do all cheap checks first."""
    with loading():
        from rollout.vllm.engine import VllmEngine

    return VllmEngine(settings)
