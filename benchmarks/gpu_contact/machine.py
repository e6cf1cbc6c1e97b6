"""Stage A: what is installed, what the card is called, and how fast its products and copies are.

While those are measured vLLM looks at the classes of the models that later stages sample from, each in a process of its
own that loads all of vLLM again. It does so once a machine, and keeps what it saw under `VLLM_CACHE_ROOT`: on an H200
that was 18 s of the first start.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.gpu_contact.figures import note
from benchmarks.gpu_contact.sizes import SIZES, Sizes

# What the training path imports, in its order, and vLLM's compiled parts.
MODULES = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "peft",
    "deepspeed",
    "math_verify",
    "pydantic",
    "omegaconf",
    "vllm",
    "vllm._C_stable_libtorch",
    "vllm.vllm_flash_attn._vllm_fa3_C",
    "vllm.model_executor.models.registry",
    "torch.nn.attention.varlen",
    "flash_attn",
)
# Of the shapes that are drawn, and of the embedded model.
CLASSES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
# What an import, or a look at a class, may raise.
NOT_THERE = (ImportError, OSError, RuntimeError, AttributeError, KeyError)
FLOP_OF_MULTIPLY_ADD = 2
WARM_UPS = 3


def tried(name: str, look: Callable[[], str]) -> dict[str, Any]:
    """What came of it: what was found, or the error."""
    start = time.perf_counter()
    try:
        found = look()
    except NOT_THERE as error:
        return {"module": name, "found": f"{type(error).__name__}: {str(error)[:200]}", "ok": False}
    return {"module": name, "found": found, "ok": True, "seconds": round(time.perf_counter() - start, 2)}


def version_of(name: str) -> str:
    """The version of a module that can be imported."""
    return str(getattr(importlib.import_module(name), "__version__", "imported"))


def look_at(architecture: str) -> str:
    """Have vLLM look at a model's class, as its first start does."""
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.models[architecture].inspect_model_cls()
    return "looked at"


def driver() -> str:
    """nvidia-smi's name, driver and memory of each card, or why there is no answer."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "no nvidia-smi"
    except subprocess.TimeoutExpired:
        return "nvidia-smi did not answer in 30 s"
    return "; ".join((done.stdout or done.stderr).split("\n")).strip("; ")


def seconds_of(work: Callable[[], Any], rounds: int) -> float:
    """Median seconds of one call, after some that are not counted; the card has finished when a call is over."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(WARM_UPS):
        once()
    return median(once() for _ in range(rounds))


def product_flops(side: int, dtype: str, rounds: int) -> float:
    """FLOP/s of a square matrix product of random numbers: zeros multiply faster than data does."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    together = 10  # products a measurement, so that a launch is no part of it

    def products() -> None:
        for _ in range(together):
            torch.mm(a, b)

    return together * FLOP_OF_MULTIPLY_ADD * side**3 / seconds_of(products, rounds)


def bytes_per_s(mib: int, rounds: int) -> float:
    """Bytes read and written a second by a copy within the device's memory."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.randint(0, 255, (mib * 2**20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source), rounds)


def main(sizes: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")]) -> None:
    """Versions and imports first, which may fail one by one; then the two ceilings."""
    given = SIZES[sizes]
    note("machine", driver=driver(), python=sys.version.split()[0])
    for name in MODULES:
        note("import", **tried(name, partial(version_of, name)))
    # What they import is there, so that they wait for their processes, and launches of products for nobody.
    with ThreadPoolExecutor() as pool:
        looks = [pool.submit(tried, f"vLLM's {name}", partial(look_at, name)) for name in CLASSES]
        measure(given)
        for look in looks:
            note("import", **look.result())


def measure(sizes: Sizes) -> None:
    """The card's name and its two ceilings."""
    import torch

    cuda = torch.cuda.is_available()
    card = torch.cuda.get_device_name(0) if cuda else "no card"
    note("machine", card=card, torch=torch.__version__, cuda=torch.version.cuda)
    flops = product_flops(sizes.product, sizes.dtype, sizes.rounds)
    note("ceiling", dtype=sizes.dtype, side=sizes.product, product_tflops=flops / 1e12)
    note("ceiling", copied_mib=sizes.copied_mib, copy_gb_s=bytes_per_s(sizes.copied_mib, sizes.rounds) / 1e9)


if __name__ == "__main__":
    typer.run(main)
