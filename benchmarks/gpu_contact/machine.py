"""Stage A: what is installed, the card's name, and how fast its matrix products and copies are.

Meanwhile vLLM inspects the classes of the models that later stages sample from, each in a process that imports all of
vLLM again. It does so once per machine and caches the result under `VLLM_CACHE_ROOT`: on an H200 that was 18 s of the
first start.
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

# What the training path imports, in order, and vLLM's compiled parts.
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
# Model classes of the random shapes and of the embedded model.
CLASSES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
# What importing a module, or inspecting a class, may raise.
NOT_THERE = (ImportError, OSError, RuntimeError, AttributeError, KeyError)
FLOP_OF_MULTIPLY_ADD = 2
WARM_UPS = 3


def tried(name: str, look: Callable[[], str]) -> dict[str, Any]:
    """A row with what was found, or with the error."""
    start = time.perf_counter()
    try:
        found = look()
    except NOT_THERE as error:
        return {"module": name, "found": f"{type(error).__name__}: {str(error)[:200]}", "ok": False}
    return {"module": name, "found": found, "ok": True, "seconds": round(time.perf_counter() - start, 2)}


def version_of(name: str) -> str:
    """Import a module, and return its version."""
    return str(getattr(importlib.import_module(name), "__version__", "imported"))


def look_at(architecture: str) -> str:
    """Make vLLM inspect a model's class, as its first start does."""
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.models[architecture].inspect_model_cls()
    return "looked at"


def driver() -> str:
    """Name, driver and memory of each card from nvidia-smi, or why it did not answer."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "no nvidia-smi"
    except subprocess.TimeoutExpired:
        return "nvidia-smi did not answer in 30 s"
    return "; ".join((done.stdout or done.stderr).split("\n")).strip("; ")


def seconds_of(work: Callable[[], Any], rounds: int) -> float:
    """Median seconds per call, after some warm-up calls; each call includes waiting for the card to finish."""
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
    """FLOP/s of a square matrix product of random numbers, as zeros multiply faster than real data."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    together = 10  # products per measurement, so that launch overhead does not count

    def products() -> None:
        for _ in range(together):
            torch.mm(a, b)

    return together * FLOP_OF_MULTIPLY_ADD * side**3 / seconds_of(products, rounds)


def bytes_per_s(mib: int, rounds: int) -> float:
    """Bytes read and written per second by a copy within the device's memory."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.randint(0, 255, (mib * 2**20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source), rounds)


def main(sizes: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")]) -> None:
    """Report versions and imports, each of which may fail, and then measure the two ceilings."""
    given = SIZES[sizes]
    note("machine", driver=driver(), python=sys.version.split()[0])
    for name in MODULES:
        note("import", **tried(name, partial(version_of, name)))
    # Everything is imported by now, so these threads only wait for their processes and do not delay kernel launches.
    with ThreadPoolExecutor() as pool:
        looks = [pool.submit(tried, f"vLLM's {name}", partial(look_at, name)) for name in CLASSES]
        measure(given)
        for look in looks:
            note("import", **look.result())


def measure(sizes: Sizes) -> None:
    """Record the card's name and its two ceilings."""
    import torch

    cuda = torch.cuda.is_available()
    card = torch.cuda.get_device_name(0) if cuda else "no card"
    note("machine", card=card, torch=torch.__version__, cuda=torch.version.cuda)
    flops = product_flops(sizes.product, sizes.dtype, sizes.rounds)
    note("ceiling", dtype=sizes.dtype, side=sizes.product, product_tflops=flops / 1e12)
    note("ceiling", copied_mib=sizes.copied_mib, copy_gb_s=bytes_per_s(sizes.copied_mib, sizes.rounds) / 1e9)


if __name__ == "__main__":
    typer.run(main)
