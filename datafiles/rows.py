"""A file or directory in any format → its rows. A row is a mapping of column names to plain values."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datafiles.cells import ROLE_NAMES
from datafiles.formats import (
    DELIMITERS,
    SPLITS,
    STATE,
    WHAT_IS_READ,
    first_split,
    format_of,
    missing_shards,
    shards_of,
    split_in,
)
from datafiles.text import TextFileError, TwiceError, each_once, first_line, read_json, text_lines

Row = Mapping[str, Any]
Drop = Callable[[str, str], None]
"""Called with the reason and the place for each row or file that is not used."""
BLANK, NOT_JSON, NO_OBJECT = "blank line", "not JSON", "not a JSON object"
SPLIT, OF_ANOTHER_SPLIT = "split", "a row of the split {!r}, by its column split"
ROWS_NAMES = frozenset({"data", "rows", "items", "records", "examples", "instances", "problems", "train", "test"})
ROWS_AT_ONCE = 1024
# Excel writes and reads a line above the column names that states the delimiter.
DELIMITER_LINE = re.compile(r'"?sep=(.)"?\s*$')
LONGEST_CELL = 2**27
"""The most characters in a cell of a CSV file; Python's default limit is a thousandth of this."""


def rows_of(path: Path, drop: Drop, key: str, split: str | None = None) -> Iterator[tuple[str, Row]]:
    """(where, row) for every row in `path`, in the files' order. Anything that is not a row is dropped with a reason.

    `split` selects from a directory with several splits, and from rows that name their split in a column; of several
    with | between them, the first that there is. `key` names
    the setting or argument that gave the path, for messages. Raises `FileNotFoundError` if nothing is there, and
    `TextFileError` if it cannot be read.
    """
    return _of_split(_all_rows(path, drop, key, split), split or "train", drop, f"{key}: {path}")


def _of_split(rows: Iterator[tuple[str, Row]], wanted: str, drop: Drop, named: str) -> Iterator[tuple[str, Row]]:
    """The rows of a split, where some say that they are of it; all, where the column only says what they are."""
    others: list[tuple[str, Row, str]] = []
    first, found = wanted.partition("|")[0], False
    for where, row in rows:
        split = split_in(row.get(SPLIT))
        if split == first and not found:
            found = True
            for place, _, other in others:
                drop(OF_ANOTHER_SPLIT.format(other), place)
        if split in ("", first):
            yield where, row
        elif found:
            drop(OF_ANOTHER_SPLIT.format(split), where)
        else:
            others.append((where, row, split))
    if found:
        return
    splits = sorted({split for _, _, split in others})
    taken = splits if len(splits) < 2 else [first_split(wanted, splits)]
    if taken == [""]:
        raise TextFileError(f"{named} has no rows of the split {first!r}: it has {', '.join(splits)}; give them apart")
    for where, row, split in others:
        if split in taken:
            yield where, row
        else:
            drop(OF_ANOTHER_SPLIT.format(split), where)


def _all_rows(path: Path, drop: Drop, key: str, split: str | None) -> Iterator[tuple[str, Row]]:
    found = format_of(path, key)
    if found.kind == "shards":
        for shard in _shards(path, drop, key, split):
            yield from _all_rows(shard, drop, key, None)
        return
    if found.kind == "empty":
        drop("an empty file", path.name)
        return
    read = {"lines": _lines, "documents": _documents, "table": _table}.get(found.kind)
    if read is None:
        yield from _columnar(path, found.kind, key, split)
        return
    yield from read(path, drop, key)


def remedy(reasons: Iterable[str]) -> str:
    """An addition to a message: the formats that can be read, if these reasons for dropping rows show that the file has
    none of them."""
    found = set(reasons)
    return f"; {WHAT_IS_READ}" if found & {NOT_JSON, NO_OBJECT} and found <= {BLANK, NOT_JSON, NO_OBJECT} else ""


def _shards(path: Path, drop: Drop, key: str, split: str | None) -> list[Path]:
    """The files of one split, or all files if no name states a split. If some do, files without a split are left out
    and counted."""
    shards, wanted = shards_of(path), split or "train"
    first, wanted = wanted.partition("|")[0], first_split(wanted, shards)
    if not wanted and set(shards) != {""}:
        has = ", ".join(filter(None, shards))
        raise TextFileError(
            f"{key}: {path} has no split {first!r}: it has {has}; give one of its files{_or_split(key)}"
        )
    for file in shards.get("", ()) if wanted else ():
        drop("a file that says no split, beside files that do", file.name)
    for name in missing_shards(shards[wanted]):
        drop("a shard that is not there, by the numbers of those that are", name)
    return shards[wanted]


def _lines(path: Path, drop: Drop, key: str) -> Iterator[tuple[str, Row]]:
    """One row per line; or, if the only line is an object that holds all rows, those rows."""
    rows = _objects(path, drop)
    begun = list(itertools.islice(rows, 2))
    alone = [row for _, row in begun]
    # A lone row may itself contain a list of mappings, so here only a list with one of these names counts as rows.
    if len(alone) == 1 and (ROWS_NAMES & alone[0].keys() or _turned(alone[0])):
        yield from _numbered(path, _items(alone), drop)
    else:
        yield from itertools.chain(begun, rows)


def _objects(path: Path, drop: Drop) -> Iterator[tuple[str, Row]]:
    for number, line in text_lines(path):
        where = f"{path.name}:{number}"
        if not line.strip():
            drop(BLANK, where)
            continue
        try:
            row = read_json(line)
        except TwiceError as error:
            drop(str(error), where)
            continue
        except (ValueError, RecursionError):
            drop(NOT_JSON, where)
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            drop(NO_OBJECT, where)


def _documents(path: Path, drop: Drop, key: str) -> Iterator[tuple[str, Row]]:
    """The items of a JSON array, or of the only array in an object; or objects of several lines each."""
    # Strings in JSON contain no raw line ends, so these can be normalized to the one that the decoder counts lines by.
    text = "\n".join(line.rstrip("\r\n") for _, line in text_lines(path))
    decoder, position, found = json.JSONDecoder(object_pairs_hook=each_once), 0, []
    try:
        while (position := len(text) - len(text[position:].lstrip())) < len(text):
            value, position = decoder.raw_decode(text, position)
            found.append(value)
    except json.JSONDecodeError as error:
        raise TextFileError(f"{key}: {path}, line {error.lineno}: not JSON ({error.msg})") from None
    except TwiceError as error:
        raise TextFileError(f"{key}: {path}, an object has {error}: keep one of them") from None
    except RecursionError:
        raise TextFileError(f"{key}: {path} is JSON nested too deeply") from None
    yield from _numbered(path, _items(found), drop)


def _numbered(path: Path, items: Iterable[Any], drop: Drop) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(items, 1):
        where = f"{path.name}:{number}"
        if isinstance(row, dict):
            yield where, row
        else:
            drop(NO_OBJECT, where)


def _items(found: list[Any]) -> list[Any]:
    if len(found) != 1 or not isinstance(found[0], dict):
        return found[0] if len(found) == 1 and isinstance(found[0], list) else found
    if rows := _turned(found[0]):
        return rows
    by_split = {name: value for name, value in found[0].items() if split_in(name) and _asks(value)}
    if len(by_split) > 1:
        return [{**row, SPLIT: name} for name, rows in by_split.items() for row in rows]
    arrays = [value for value in found[0].values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    # A chat in a row is such an array too.
    is_row = len(arrays) != 1 or any(ROLE_NAMES & item.keys() for item in arrays[0][:1])
    return found if is_row else arrays[0]


def _turned(table: Row) -> list[dict[str, Any]]:
    """The rows of a table that one object holds by column, by id, or as names and cells apart, as pandas and others
    write them; empty if the object is not such a table."""
    names, cells, values = table.get("columns"), table.get("data"), list(table.values())
    if isinstance(names, list) and isinstance(cells, list):
        fit = all(isinstance(row, list) and len(row) == len(names) for row in cells)
        return [dict(zip(names, row, strict=True)) for row in cells] if fit else []
    if all(isinstance(value, dict) and value and value.keys() == values[0].keys() for value in values):
        inner = [*values[0]] if values else []
        if all(name.isdigit() for name in inner):  # by column, keyed by row number
            return [{name: column[number] for name, column in table.items()} for number in inner]
        by_id = len(values) > 1 and not ROLE_NAMES & set(inner)
        return [{"id": name, **row} for name, row in table.items()] if by_id else []
    if any(name in ROWS_NAMES and _is_rows(value) for name, value in table.items()):
        return []  # another list next to the rows may have the same length
    columns = [value for value in values if isinstance(value, list)]
    is_chat = any(isinstance(item, dict) and ROLE_NAMES & item.keys() for column in columns for item in column[:1])
    if len(values) > 1 and len(columns) == len(values) and len({*map(len, columns)}) == 1 and not is_chat:
        return [dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)]
    return []


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _asks(value: Any) -> bool:
    """Whether these are rows with a text or a chat. The lists `train` and `test` of an ARC task hold grids."""
    return _is_rows(value) and any(isinstance(cell, str | dict) or _is_rows(cell) for cell in value[0].values())


def _table(path: Path, drop: Drop, key: str) -> Iterator[tuple[str, Row]]:
    """CSV whose first line names the columns. Every cell is kept as text: 007 stays 007. People type a space after a
    comma: it is not the cell's, and quotation marks after it are quotation marks."""
    lines = (line for _, line in text_lines(path))
    first = next(lines, "")
    declared = DELIMITER_LINE.match(first)
    above = 1 if declared else 0
    delimiter = declared[1] if declared else max(DELIMITERS, key=first.count)
    csv.field_size_limit(LONGEST_CELL)
    table = lines if declared else itertools.chain([first], lines)
    reader = csv.reader(table, delimiter=delimiter, skipinitialspace=True, strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            where = f"{path.name}:{reader.line_num + above}"
            if not names:
                names = [cell.strip() for cell in cells]
                if twice := next((name for name in names if name and names.count(name) > 1), None):
                    raise TextFileError(f"{key}: {path} has two columns {twice!r}: rename one of them")
            elif not cells:
                drop(BLANK, where)
            elif len(cells) != len(names):
                drop(f"{len(cells)} cells under {len(names)} names", where)
            else:
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise TextFileError(f"{key}: {path}, line {reader.line_num + above}: {error}") from None


def _columnar(path: Path, kind: str, key: str, split: str | None) -> Iterator[tuple[str, Row]]:
    import datasets  # heavy, and needed only for these formats

    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # these modules also raise what they log
    try:
        if kind == "saved":
            rows = _saved(_saved_split(path, key, split))
        else:
            # By default the library reads batches of the first row group's size, which may be zero.
            sizes = {"batch_size": ROWS_AT_ONCE} if kind == "parquet" else {}
            files = {"train": [_escaped(path)]}
            rows = datasets.load_dataset(kind, data_files=files, split="train", streaming=True, **sizes)
        for number, row in enumerate(rows, 1):
            yield f"{path.name}:{number}", row
    except TextFileError:
        raise
    except (ValueError, OSError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
        reason = first_line(error)
        raise TextFileError(f"{key}: {path} cannot be read as {kind}: {reason}") from error


def _saved(path: Path) -> Any:
    """The rows of a directory written by save_to_disk. A dataset without rows has no data file, and the library fails
    to load that."""
    import datasets

    state = read_json((path / STATE).read_text(encoding="utf-8"))
    if isinstance(state, dict) and state.get("_data_files") == []:
        return []
    return datasets.load_from_disk(str(path))


def _saved_split(path: Path, key: str, split: str | None) -> Path:
    """The directory of the wanted split, or the directory itself if it has no splits."""
    if not (path / SPLITS).is_file():
        return path
    names, wanted = read_json((path / SPLITS).read_text(encoding="utf-8"))["splits"], split or "train"
    if not (found := first_split(wanted, names)):
        first, has = wanted.partition("|")[0], ", ".join(map(str, names)) or "none"
        raise TextFileError(f"{key}: {path} has no split {first!r}: it has {has}; give {path}/NAME{_or_split(key)}")
    return path / found


def _or_split(key: str) -> str:
    """An addition to a message: the key that selects a split, if there is one: `data.split`, `data.mix.0.split`."""
    return f", or {key.removesuffix('path')}split" if key.startswith(("data.path", "data.mix")) else ""


def _escaped(path: Path) -> str:
    """A path with its wildcards escaped, because the library takes it for a glob pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path.resolve()))
