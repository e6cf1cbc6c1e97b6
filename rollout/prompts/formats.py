"""A file that should be JSON Lines → what it is instead, for people. The only place that knows other formats."""

from __future__ import annotations

from pathlib import Path

from rollout.text_files import BOM, TextFileError

HEAD_BYTES = 4096
# First bytes → what such a file is, and how the `datasets` library calls it.
MAGIC = {
    b"PAR1": ("a Parquet file", "parquet"),
    b"ARROW1": ("an Arrow file", "arrow"),
    b"\x1f\x8b": ("a gzip file", "gzip"),
    b"(\xb5/\xfd": ("a Zstandard file", None),
    b"BZh": ("a bzip2 file", None),
    b"\xfd7zXZ": ("an xz file", None),
    b"PK\x03\x04": ("a zip archive or an Excel sheet", None),
    b"SQLite format 3": ("an SQLite data base", None),
    b"version https://git-lfs": ("a pointer to a file that git-lfs has not fetched (`git lfs pull`)", None),
}
TABLES = {".csv": "a CSV file", ".tsv": "a table with tabs"}


def refuse_other_formats(path: Path, key: str) -> None:
    """Raises `FileNotFoundError` where nothing is, and `TextFileError` for what is not JSON Lines by its first bytes.

    `key` is where the path was given, for people.
    """
    if path.is_dir():
        raise TextFileError(f"{key}: {path} is {_directory(path)}")
    if not path.is_file():
        raise FileNotFoundError(f"{key}: no such file: {path}")
    with path.open("rb") as file:
        found = _kind(path, file.read(HEAD_BYTES))
    if found is not None:
        kind, name = found
        raise TextFileError(f"{key}: {path} is {kind}, and JSON Lines is read{_way_out(path, name)}")


def _kind(path: Path, head: bytes) -> tuple[str, str | None] | None:
    for magic, found in MAGIC.items():
        if head.startswith(magic):
            return found
    text = head.removeprefix(BOM).lstrip()
    first = text.partition(b"\n")[0].strip()
    if text.startswith(b"["):
        return "a JSON array", "json"
    if first == b"{":
        return "a JSON object over several lines", "json"
    if text and not text.startswith(b"{") and path.suffix.lower() in TABLES:
        return TABLES[path.suffix.lower()], "csv"
    return None


def _way_out(path: Path, name: str | None) -> str:
    if name is None:
        return ""
    if name == "gzip":
        return f": `gunzip -k {path}` unpacks it"
    tabs = ", sep='\\t'" if path.suffix.lower() == ".tsv" else ""
    source = f"datasets.load_dataset('{name}', data_files='{path}', split='train'{tabs})"
    return _converts(
        source, path.with_suffix(".jsonl") if path.suffix != ".jsonl" else path.with_suffix(".lines.jsonl")
    )


def _converts(source: str, target: Path) -> str:
    return f": `python -c \"import datasets; {source}.to_json('{target}')\"` makes one of it"


def _directory(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    target = path.with_name(f"{path.name}.jsonl")
    if "dataset_dict.json" in names:
        source = f"datasets.load_from_disk('{path}')['train']"
        return f"a directory of save_to_disk, and a JSON Lines file is read{_converts(source, target)}"
    if "state.json" in names and "dataset_info.json" in names:
        source = f"datasets.load_from_disk('{path}')"
        return f"a directory of save_to_disk, and a JSON Lines file is read{_converts(source, target)}"
    held = f"; it holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "; it is empty"
    return f"a directory, and a JSON Lines file is read{held}"
