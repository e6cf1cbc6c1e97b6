"""The archive for a machine with a GPU: its contents, the GPU code it keeps, and that a run needs nothing else."""

from __future__ import annotations

import re
import struct
import tomllib
from pathlib import Path

import pytest

from benchmarks.gpu_bundle import (
    COPIED,
    DROPPED,
    ELF,
    FAT_MAGIC,
    GIVEN,
    LEFT_OUT,
    PACKED,
    PTX,
    ROOT,
    Code,
    containers,
    pins,
    pruned,
    unpack,
    wanted,
)

LOCK = pins((ROOT / "requirements/cuda.txt").read_text())
HEADER, ENTRY = 16, 64


def fat_binary(entries: list[tuple[int, int, bytes]]) -> bytes:
    """A fat binary of (kind, architecture, code), as nvcc lays it out."""
    body = b""
    for kind, arch, code in entries:
        head = bytearray(ENTRY)
        struct.pack_into("<HHIQ", head, 0, kind, 0x101, ENTRY, len(code))
        struct.pack_into("<I", head, 28, arch)
        body += bytes(head) + code
    return struct.pack("<IHHQ", FAT_MAGIC, 1, HEADER, len(body)) + body


def elf(content: bytes) -> bytes:
    """A 64-bit ELF file of three sections: none, the names, and the fat binaries."""
    names = b"\0.shstrtab\0.nv_fatbin\0"
    table = 64 + len(names) + len(content)
    head = bytearray(64)
    head[:4] = b"\x7fELF"
    struct.pack_into("<Q", head, 0x28, table)
    struct.pack_into("<HHH", head, 0x3A, 64, 3, 1)

    def section(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 0, 0)

    headers = section(0, 0, 0) + section(1, 64, len(names)) + section(11, 64 + len(names), len(content))
    return bytes(head) + names + content + headers


def test_only_the_cards_own_code_is_kept_and_nothing_moves() -> None:
    codes = [(ELF, 80, b"a" * 24), (ELF, 90, b"b" * 16), (PTX, 90, b"c" * 32), (ELF, 100, b"d" * 8)]
    # Zero padding between two fat binaries, as a linker aligns them.
    image = elf(fat_binary(codes) + bytes(8) + fat_binary([(ELF, 90, b"e" * 8), (ELF, 120, b"f" * 8)]))
    kept = pruned(image, 90)
    assert len(kept) == len(image)
    assert [byte for byte in b"abcdef" if bytes([byte]) * 8 in kept] == list(b"be")
    changed = {at for at, (one, other) in enumerate(zip(image, kept, strict=True)) if one != other}
    assert len(changed) == 24 + 32 + 8 + 8
    assert [[code.arch for code in found] for found in containers(kept)] == [[80, 90, 90, 100], [90, 120]]


@pytest.mark.parametrize(
    ("codes", "kept"),
    [
        ([Code(PTX, 80, 0, 1), Code(PTX, 90, 1, 1), Code(PTX, 100, 2, 1)], [90]),  # the driver compiles the newest
        ([Code(PTX, 80, 0, 1), Code(ELF, 100, 1, 1)], [80]),
        ([Code(ELF, 100, 0, 1)], []),
    ],
)
def test_a_card_without_code_takes_the_newest_that_compiles(codes: list[Code], kept: list[int]) -> None:
    assert [code.arch for code in wanted(codes, 90)] == kept


def test_a_lock_is_read_with_its_markers() -> None:
    assert pins("a==1.0\n# b==2\nc==3 ; python_version < '3.13'\n    # via a\n")["c"] == "3"
    assert LOCK["vllm"] == "0.32.0"


def test_what_is_packed_is_locked_and_has_a_place() -> None:
    assert LOCK.keys() >= PACKED | COPIED
    assert not PACKED & GIVEN
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^a-zA-Z0-9_-]", line)[0].replace("_", "-") for line in project["dependencies"]}
    assert names - PACKED - COPIED - GIVEN == LEFT_OUT


def test_wheels_of_an_earlier_lock_are_not_packed_beside_the_new(tmp_path: Path) -> None:
    for name in ("vllm-0.31.0-cp38-abi3-linux_x86_64.whl", "vllm-0.32.0-cp38-abi3-linux_x86_64.whl", "peft-0.21.2.whl"):
        (tmp_path / name).touch()
    with pytest.raises(SystemExit, match=r"has several versions of vllm: leave one of each there$"):
        unpack(tmp_path, tmp_path / "site")


def test_what_a_hopper_card_runs_is_not_dropped() -> None:
    stays = ["vllm/_C_stable_libtorch.abi3.so", "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so", "vllm/lora/request.py"]
    goes = ["vllm/_moe_C.abi3.so", "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", "vllm/benchmarks/serve.py"]
    assert [name for name in (*stays, *goes) if DROPPED.search(name)] == goes
