"""A path → what the file is by its first bytes, and the reader for it. The only place that knows formats."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datafiles.text import BOM, GZIP, TextFileError, refuse_other_unicode

HEAD_BYTES = 4096
Kind = Literal["empty", "lines", "documents", "table", "parquet", "arrow", "saved", "shards"]
# First bytes → kind of file.
READ: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
TAR, TAR_AT = b"ustar", 257
"""What a tar archive holds, and at which byte."""
REFUSED = {
    b"(\xb5/\xfd": "a Zstandard file: `zstd -d` unpacks it",
    b"BZh": "a bzip2 file: `bunzip2 -k` unpacks it",
    b"\xfd7zXZ": "an xz file: `unxz -k` unpacks it",
    b"PK\x03\x04": "a zip archive or an Excel sheet: unpack it, or save the sheet as CSV",
    b"SQLite format 3": "an SQLite database: write the table as CSV",
    b"version https://git-lfs": "a pointer to a file that git-lfs has not fetched (`git lfs pull`)",
}
JSON_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson"})
# In these formats even a file without rows has bytes.
NEVER_EMPTY = (".parquet", ".arrow")
SUFFIXES = (*sorted(JSON_SUFFIXES), ".csv", ".tsv", ".parquet", ".arrow")
"""File name endings of these formats, without `.gz`. They only tell names of files apart: the format of a file is
detected from its content."""
DELIMITERS = ",\t;"
WHAT_IS_READ = "JSON Lines, a JSON array, CSV, Parquet, Arrow, or a directory of them or of save_to_disk is read"
# `train-00000-of-00002.parquet`, `gsm8k_test.jsonl`: as in the `datasets` library, any word of a file's name can say
# which split it belongs to. If only the first word counted, a test set in the same directory could be trained on.
SPLIT_IN_NAME = re.compile(
    "(?<![a-z])(?:(train)(?:ing)?|(test)(?:ing)?|(eval)(?:uation)?|(validation|valid|val|dev))(?:[-_]?set)?(?![a-z])"
)
# Names of benchmarks, such as HumanEval and C-Eval: the "eval" in them does not name a split.
NAMED_EVAL = re.compile("(?<![a-z])(?:human|big-?code|agi|if|alpaca|c|m)[-_]?eval(?![a-z])")
# The word boundary in gsm8kTest or MATHTrain.
CAPITAL = re.compile("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
HELD_OUT = "test|eval|validation"
"""What an evaluation reads of several splits: the first of these that there is."""
SHARD_OF = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\..+)")
# Files in a directory written by save_to_disk: the first in one without splits, the second in one with several splits.
STATE, SPLITS = "state.json", "dataset_dict.json"
SAVED = frozenset({STATE, "dataset_info.json"})
METADATA = SAVED | {"dataset_infos.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """The format of a file or directory.

    Example: `Format(kind="table", packed=True)`, a gzipped CSV file
    """

    kind: Kind
    packed: bool = False
    """Whether the file is compressed with gzip."""


def format_of(path: Path, key: str) -> Format:
    """The format of a path, from its first bytes. `key` names the setting or argument that gave the path, for messages.

    Raises `FileNotFoundError` if nothing is there, and `TextFileError` for a format that is not supported.
    """
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if SPLITS in names or names >= SAVED:
            return Format(kind="saved")
        return Format(kind="shards" if _check_shards(path, key) else "empty")
    if not path.is_file():
        raise FileNotFoundError(f"{key}: no such file: {path}{_way_to_read(str(path), key)}")
    head = _head(path)
    packed = head.startswith(GZIP)
    if packed:
        head = _unpacked_head(path, key)
    refused = next((kind for magic, kind in REFUSED.items() if head.startswith(magic)), "")
    if head.startswith(TAR, TAR_AT):
        refused = "a tar archive: `tar -xf` unpacks it"
    if refused:
        raise TextFileError(f"{key}: {path} is {refused}; {WHAT_IS_READ}")
    if not head.removeprefix(BOM):
        if path.name.lower().endswith(NEVER_EMPTY):
            raise TextFileError(f"{key}: {path} has 0 bytes, so writing or copying it was cut short: make it again")
        return Format(kind="empty", packed=packed)
    binary = next((kind for magic, kind in READ.items() if head.startswith(magic)), None)
    if binary is not None and packed:
        raise TextFileError(f"{key}: {path} is {binary.title()} in gzip: `gunzip -k` unpacks it")
    return Format(kind=binary or _kind_of_text(path, head), packed=packed)


def _way_to_read(path: str, key: str) -> str:
    """What to do about a path that is a pattern, an address or the name of a dataset on the hub."""
    if any(sign in path for sign in "*?["):
        return "; patterns are not expanded: give a directory of shards"
    if ":/" in path or re.fullmatch(r"[\w-]+/[\w-]+", path):
        hub = "; a dataset on the hub is read with data.source=hub data.name=ORG/NAME"
        return f"{hub}, and a file only from this machine" if key.startswith("data.") else ""
    return ""


def check_file(path: Path, key: str) -> None:
    """Raise what `format_of` raises, and `TextFileError` if the file, or every file in the directory, is empty, or if
    its first lines show that it is another kind of text (a configuration, a README)."""
    found = format_of(path, key)
    if found.kind == "empty":
        raise TextFileError(f"{key}: {path} is empty")
    if found.kind == "lines":
        head = _unpacked_head(path, key) if found.packed else _head(path)
        lines = [line for line in map(bytes.strip, head.removeprefix(BOM).splitlines()) if line]
        if lines and not any(line.startswith(b"{") for line in lines):
            begins = lines[0].decode(errors="replace")
            raise TextFileError(f"{key}: {path} is not a file of rows (it begins {begins[:50]!r}); {WHAT_IS_READ}")


def is_table(path: Path, key: str) -> bool:
    """Whether the first line of the file, or of any file in the directory, holds the names of the columns."""
    kind = format_of(path, key).kind
    files = [file for files in shards_of(path).values() for file in files] if kind == "shards" else []
    return kind == "table" or any(is_table(file, key) for file in files if file.exists())


def is_file_name(name: str) -> bool:
    """Whether a name means a file or directory, rather than something that has a name of its own here."""
    return "/" in name or name.lower().removesuffix(".gz").endswith(SUFFIXES) or Path(name).exists()


def stem_of(name: str) -> str:
    """A file's name without directories and endings: `data/train.jsonl.gz` → `train`."""
    last = Path(name).name
    unpacked = last[:-3] if last.lower().endswith(".gz") else last
    return next((unpacked[: -len(end)] for end in SUFFIXES if unpacked.lower().endswith(end)), unpacked)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _unpacked_head(path: Path, key: str) -> bytes:
    try:
        with gzip.open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise TextFileError(f"{key}: {path} is a damaged gzip file: {error}") from error


def _kind_of_text(path: Path, head: bytes) -> Kind:
    refuse_other_unicode(path, head)
    text = head.removeprefix(BOM).lstrip()
    first = text.splitlines()[0].strip() if text else b""
    if text.startswith(b"[") or first == b"{":
        return "documents"
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    named = suffix in (".csv", ".tsv")
    delimited = suffix not in JSON_SUFFIXES and any(mark.encode() in first for mark in DELIMITERS)
    return "table" if text and not text.startswith(b"{") and (named or delimited) else "lines"


def _split_said(name: str) -> str:
    """The split that a file's name states, or "". A name with two splits, for a file that holds both, states none."""
    words = NAMED_EVAL.sub("", CAPITAL.sub("-", name).lower())
    matches = {found[found.lastindex or 0] for found in SPLIT_IN_NAME.finditer(words)}
    return matches.pop() if len(matches) == 1 else ""


def split_in(value: object) -> str:
    """The split that a cell is the name of; nothing for any other cell."""
    found = SPLIT_IN_NAME.fullmatch(value.lower()) if isinstance(value, str) else None
    return str(found[found.lastindex or 0]) if found else ""


def first_split(wanted: str, there: Collection[str]) -> str:
    """The first of the wanted splits, with | between them, that there is; "" if there is none."""
    return next((name for name in wanted.split("|") if name in there), "")


def shards_of(path: Path) -> dict[str, list[Path]]:
    """The data files of a directory, going by their names, grouped by the split that the names state ("" for none)."""
    found: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        name = file.name.lower()
        visible = not name.startswith((".", "_")) and name not in METADATA
        # Keep broken links: silently leaving out data would be wrong, and reading such a file raises an error.
        if not file.is_dir() and visible and name.removesuffix(".gz").endswith(SUFFIXES):
            found.setdefault(_split_said(file.name), []).append(file)
    return found


def missing_shards(files: Sequence[Path]) -> list[str]:
    """The names of shards that are missing, going by the numbers in names such as `train-00000-of-00002.parquet`."""
    found = [match.groups() for file in files if (match := SHARD_OF.fullmatch(file.name))]
    sets = {(begin, of, count, end) for begin, _, of, count, end in found}
    there = {file.name for file in files}
    names = []
    for begin, of, count, end in sorted(sets):
        from_one = f"{begin}{count}{of}{count}{end}" in there
        names += [f"{begin}{n + from_one:05}{of}{count}{end}" for n in range(int(count))]
    return [name for name in names if name not in there]


def has_splits(path: Path) -> bool:
    """Whether a directory holds splits, from which one must be chosen."""
    return path.is_dir() and ((path / SPLITS).is_file() or set(shards_of(path)) not in (set(), {""}))


def _check_shards(path: Path, key: str) -> bool:
    """Whether any shard of a directory has content, or may have: the target of a broken link is unknown. Raises
    `TextFileError` if there is no shard, or if the shards' formats differ."""
    shards = [file for files in shards_of(path).values() for file in files]
    if not shards:
        names = sorted(entry.name for entry in path.iterdir())
        held = f"it holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "it is empty"
        inside = [str(entry) for entry in sorted(path.iterdir()) if entry.is_dir() and shards_of(entry)]
        remedy = f"give {' or '.join(inside)}" if inside else WHAT_IS_READ
        raise TextFileError(
            f"{key}: {path} is a directory, neither of save_to_disk nor of data files: {held}; {remedy}"
        )
    # A broken link is reported by whatever reads it, not here: it may belong to a split that is not used.
    kinds = {file: format_of(file, key).kind for file in shards if file.exists()}
    written = [file for file, kind in kinds.items() if kind != "empty"]
    for file in written:
        if kinds[file] != kinds[written[0]]:
            raise TextFileError(
                f"{key}: {path} holds files of several formats ({written[0].name}, {file.name}), and shards are of "
                "one; give one of its files"
            )
    return bool(written) or len(kinds) < len(shards)
