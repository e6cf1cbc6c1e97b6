"""The CUDA lock → one archive for a GPU machine without a network that already has Python 3.12 and torch.

    python -m benchmarks.gpu_bundle .gpu/bundle.tar.xz           # here: a minute or two, and a network

    python3 -c "import tarfile; tarfile.open('.gpu/bundle.tar.xz').extractall('site', filter='data')"     # there
    PYTHONPATH=$PWD/site:$PWD python3 -m benchmarks.gpu_contact --out DIR

The archive contains PACKED, at the versions of `requirements/cuda.txt`. GIVEN is what such a machine has besides
Python, in its own versions, which the first stage of `benchmarks.gpu_contact` reports. LEFT_OUT is never imported on
the training path (`tests/doctor/test_doctor.py` checks that). Most of the archive is vLLM's wheel. The parts
for other models, other cards and other languages are dropped, and in the remaining compiled files the code for other
cards is zeroed: sizes and offsets stay the same, and zeros compress to nothing. DeepSpeed has no wheel, so its
installed files, which are pure Python, are copied.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
LIMIT_MIB = 45
PYTHON = "3.12"
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (28, 31, 27, 26, 24, 17)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
HOPPER = 90

PACKED = frozenset(
    {
        *("vllm", "compressed-tensors", "xgrammar", "apache-tvm-ffi", "llguidance", "oss-harmony", "openai"),
        *("fastapi", "starlette", "pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
        *("httpx2", "httpcore2", "truststore", "sniffio", "jiter", "jsonschema", "jsonschema-specifications"),
        *("referencing", "rpds-py", "msgspec", "cbor2", "cachetools", "partial-json-parser", "pybase64", "pyzmq"),
        *("loguru", "charset-normalizer", "einops", "peft", "hjson", "omegaconf", "antlr4-python3-runtime"),
        *("math-verify", "latex2sympy2-extended", "latex2mathml"),
    }
)
COPIED = frozenset({"deepspeed"})
GIVEN = frozenset(
    {
        *("torch", "triton", "transformers", "tokenizers", "accelerate", "safetensors", "huggingface-hub", "numpy"),
        *("scipy", "sympy", "mpmath", "networkx", "pandas", "pyarrow", "jinja2", "markupsafe", "pyyaml", "regex"),
        *("requests", "urllib3", "idna", "certifi", "httpx", "httpcore", "h11", "anyio", "fsspec", "filelock"),
        *("packaging", "typer", "click", "shellingham", "rich", "markdown-it-py", "mdurl", "pygments", "tqdm"),
        *("psutil", "matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pillow", "pyparsing"),
        *("python-dateutil", "six", "tensorboard", "tensorboard-data-server", "absl-py", "grpcio", "markdown"),
        *("protobuf", "werkzeug", "setuptools", "wheel", "ninja", "msgpack", "py-cpuinfo", "nvidia-ml-py", "aiohttp"),
        *(
            "aiohappyeyeballs",
            "aiosignal",
            "attrs",
            "frozenlist",
            "multidict",
            "propcache",
            "yarl",
            "prometheus-client",
        ),
        *(
            "sentencepiece",
            "tiktoken",
            "numba",
            "llvmlite",
            "opencv-python-headless",
            "ml-dtypes",
            "hf-xet",
            "cuda-bindings",
        ),
        *("cuda-core", "cuda-pathfinder", "typing-extensions", "annotated-doc", "cloudpickle", "xxhash", "uvloop"),
        *("tabulate", "simplejson", "cython"),
    }
)
LEFT_OUT = frozenset({"ray", "trl", "datasets"})
"""Dependencies that are left out: for cluster workers, supervised training, and tabular data files."""

# In vLLM's wheel: the Rust server, headers and web pages, kernels for mixture-of-experts, quantized and other models,
# flash attention 2 (Hopper cards use 3), and benchmarks.
DROPPED = re.compile(
    r"vllm-rs$|\.(hpp|h|cuh|jpg|js|css)$|_moe_C|_flashmla|_flashkda|_qutlass|_deepselect|_vllm_fa2_C|deep_gemm/_C|_rust_"
    r"|^vllm/benchmarks/"
)
PRUNED = ("vllm/_C_stable_libtorch.abi3.so", "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so")

# A fat binary: a header, then entries, each with code for one architecture (ELF) or for the driver to compile (PTX).
FAT_MAGIC = 0xBA55ED50
PTX, ELF = 1, 2
FAT_SECTION = ".nv_fatbin"
ALIGNED = 8


def pins(lock: str) -> dict[str, str]:
    """Name → version, from the lines of a lock file."""
    lines = (line.split(";")[0].strip() for line in lock.splitlines() if "==" in line)
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


@dataclass(frozen=True, slots=True)
class Code:
    """One entry of a fat binary."""

    kind: int
    arch: int
    start: int
    """Offset of the payload in the file."""
    size: int


def sections(image: bytes | bytearray, name: str) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of the sections with this name in a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", image, 0x28)
    width, count, names = struct.unpack_from("<HHH", image, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, table + index * width) for index in range(count)]
    texts = headers[names][4]
    for header in headers:
        start = texts + header[0]
        if image[start : image.index(0, start)].decode() == name:
            yield header[4], header[5]


def containers(image: bytes | bytearray) -> Iterator[list[Code]]:
    """The entries of each fat binary in a file."""
    for offset, size in sections(image, FAT_SECTION):
        place, end = offset, offset + size
        while place < end - 2 * ALIGNED:
            magic, _, header, payload = struct.unpack_from("<IHHQ", image, place)
            if magic != FAT_MAGIC:
                place += ALIGNED
                continue
            entry, place = place + header, place + header + payload
            found = []
            while entry < place:
                kind, _, head, length = struct.unpack_from("<HHIQ", image, entry)
                (arch,) = struct.unpack_from("<I", image, entry + 28)
                found.append(Code(kind, arch, entry + head, length))
                entry += head + length
            yield found


def wanted(codes: list[Code], arch: int) -> list[Code]:
    """The entries of a fat binary that a card of this architecture loads: its own code, else the newest PTX up to
    it."""
    own = [code for code in codes if code.kind == ELF and code.arch == arch]
    portable = [code for code in codes if code.kind == PTX and code.arch <= arch]
    newest = max((code.arch for code in portable), default=0)
    return own or [code for code in portable if code.arch == newest]


def pruned(image: bytes, arch: int = HOPPER) -> bytes:
    """The file with the code for all other cards zeroed."""
    kept = bytearray(image)
    for codes in containers(image):
        loaded = wanted(codes, arch)
        for code in codes:
            if code not in loaded:
                kept[code.start : code.start + code.size] = bytes(code.size)
    return bytes(kept)


def download(wheels: Path, versions: dict[str, str]) -> None:
    """Download the missing wheels of PACKED with pip."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target = ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    fetch = ["download", "--quiet", "--no-deps", "--only-binary=:all:", *target, "-d", str(wheels)]
    names = [f"{name}=={versions[name]}" for name in sorted(PACKED)]
    subprocess.run([sys.executable, "-m", "pip", *fetch, *names], check=True)


def unpack(wheels: Path, site: Path) -> None:
    """Unpack every wheel, except vLLM's files that match DROPPED; prune other cards' code from PRUNED.

    Raises `SystemExit` if a package is there in two versions, as after a change of the lock: both would be unpacked.
    """
    found = sorted(wheels.glob("*.whl"))
    names = Counter(wheel.name.partition("-")[0] for wheel in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise SystemExit(f"--wheels: {wheels} has several versions of {', '.join(twice)}: leave one of each there")
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not (wheel.name.startswith("vllm-") and DROPPED.search(name)):
                    archive.extract(name, site)
    for name in PRUNED:
        (site / name).write_bytes(pruned((site / name).read_bytes()))


def copy_installed(package: str, site: Path) -> None:
    """Copy an installed package's files and metadata."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed here, and it has no wheel to take instead: run `make` first")
    installed = Path(found.origin).parents[1]
    for place in (installed / package, *installed.glob(f"{package}-*.dist-info")):
        shutil.copytree(place, site / place.name, ignore=shutil.ignore_patterns("__pycache__"))


def main(
    out: Annotated[Path, typer.Argument(help="The archive, NAME.tar.xz.")],
    lock: Annotated[Path, typer.Option(help="Versions.")] = ROOT / "requirements/cuda.txt",
    wheels: Annotated[Path | None, typer.Option(help="Directory to keep the downloaded wheels in.")] = None,
) -> None:
    """Pack what a GPU machine lacks."""
    with tempfile.TemporaryDirectory() as scratch:
        place, site = wheels or Path(scratch) / "wheels", Path(scratch) / "site"
        download(place, pins(lock.read_text()))
        unpack(place, site)
        for package in sorted(COPIED):
            copy_installed(package, site)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(out, "w:xz", preset=9) as archive:
            for path in sorted(site.iterdir()):
                archive.add(path, path.name)
    size = out.stat().st_size / 2**20
    print(f"{out}: {size:.1f} MiB, of {LIMIT_MIB} allowed")
    if size > LIMIT_MIB:
        raise SystemExit(f"the archive is larger than {LIMIT_MIB} MiB: what else is not needed there?")


if __name__ == "__main__":
    typer.run(main)
