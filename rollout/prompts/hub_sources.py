"""A hub dataset → its rows as problems; only the needed columns are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from datafiles.cells import asked_in, cell
from datafiles.problems import CHOICES, INPUT, Columns, ProblemRow, problem_rows
from datafiles.rows import Drop, Row
from datafiles.text import in_one_line
from rollout.config import ColumnsConfig
from rollout.prompts.sources import SOURCES, HubDataset


def chosen_columns(defaults: Columns, chosen: ColumnsConfig) -> Columns:
    """The default columns of a source, overridden by those that the user named."""
    return replace(defaults, **{name: value for name, value in chosen if value is not None})


def hub_problem_rows(
    name: str, dataset: HubDataset, chosen: ColumnsConfig, drop: Drop, need_answer: bool, whole: bool
) -> Iterator[ProblemRow]:
    """Rows of a hub dataset; only the named columns and those that a problem may have to
    repeat are read, unless the `whole` row is wanted."""
    own = Columns(
        problem=dataset.problem,
        answer=dataset.answer if isinstance(dataset.answer, str) else None,
        level=dataset.level,
        subject=dataset.subject,
        id=None,
    )
    columns = chosen_columns(own, chosen)
    extract = dataset.answer if callable(dataset.answer) and chosen.answer is None else None
    needed = {*columns.named, *dataset.reads} - ({columns.answer or ""} if not need_answer else set())
    rows = _hub_rows(name, dataset, columns, needed, drop, whole)
    return problem_rows(rows, columns, drop, extract=extract, need_answer=need_answer, with_extra=whole)


def _hub_rows(
    name: str, dataset: HubDataset, columns: Columns, needed: set[str], drop: Drop, whole: bool
) -> Iterator[tuple[str, Row]]:
    excluded = _excluded_texts(dataset)
    for config in dataset.configs:
        for split in dataset.splits:
            part = _load_from_hub(dataset, config, split)
            has = part.column_names
            # A nested column is named PARENT.CHILD.
            missing = {one for one in needed if one not in has and one.partition(".")[0] not in has}
            if missing:
                raise ValueError(
                    f"{dataset.path} has no column {', '.join(sorted(missing))}; "
                    f"it has {', '.join(has)} (set data.columns)"
                )
            wanted = {*needed, *columns.named, *CHOICES, INPUT}
            read = [one for one in has if whole or one in wanted or any(n.startswith(f"{one}.") for n in wanted)]
            for index, row in enumerate(part.select_columns(read)):
                where = "-".join([name, *([config] if config else []), split, str(index)])
                if excluded and asked_in(cell(row, columns.problem), columns.problem).text in excluded:
                    drop(f"also in {dataset.excludes}", where)
                else:
                    yield where, row


def _load_from_hub(dataset: HubDataset, config: str | None, split: str) -> Any:
    import datasets  # heavy, and only needed for hub datasets

    try:
        return datasets.load_dataset(dataset.path, config, split=split, revision=dataset.revision)
    except ValueError as error:  # no such subset or split, or several to choose from
        raise ValueError(f"{dataset.path}: {in_one_line(error)} (data.subset, data.split)") from error


def _excluded_texts(dataset: HubDataset) -> frozenset[str]:
    if dataset.excludes is None:
        return frozenset()
    other = SOURCES[dataset.excludes]
    rows = hub_problem_rows(dataset.excludes, other, ColumnsConfig(), lambda *_: None, need_answer=True, whole=False)
    return frozenset(row.asked.text for row in rows)
