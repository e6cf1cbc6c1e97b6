"""Nothing → problems: hub datasets, files, two generators; one table names them.

A source yields rows; each row becomes a `Problem` or is dropped with a counted reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datafiles.cells import has_column, named, paths_of
from datafiles.dropped import Dropped
from datafiles.formats import check_file, is_file_name
from datafiles.problems import Columns, ProblemRow, missing_columns, number_in, problem_rows
from datafiles.rows import Row, remedy, rows_of
from datafiles.tasks import Task
from rollout.config import DataConfig, SourceConfig
from rollout.hub import HubItem
from rollout.prompts.arithmetic import Split, arithmetic_problems
from rollout.prompts.generated import COUNT, REASONING_GYM, check_task, task_of, task_problems
from rollout.prompts.hub_sources import chosen_columns, hub_problem_rows
from rollout.prompts.sources import SOURCES, HubDataset
from rollout.types import Problem

FILES = ("file", "jsonl")
HUB, MIX, ARITHMETIC = "hub", "mix", "arithmetic"
GENERATED = frozenset({ARITHMETIC, REASONING_GYM})
"""Sources that generate their problems, with separate training and held-out splits."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The problems of a source, and the rows it dropped."""

    problems: list[Problem]
    dropped: Dropped = field(default_factory=Dropped)


def check_source(config: DataConfig, key: str = "data.path") -> None:
    """Raises `ValueError` for an unknown source, `FileNotFoundError` for a missing file; reads only a little."""
    for part in parts_of(config, key):
        _check_part(part.config, part.key)


def _check_part(config: SourceConfig, key: str) -> None:
    where = key.removesuffix("path")
    if config.source == ARITHMETIC:
        return
    if config.source == REASONING_GYM:
        check_task(task_of(config.task, config.task_settings, where), where)
        return
    if config.path is not None:
        check_file(Path(config.path), key)
    elif config.source == HUB and config.name is None:
        raise ValueError(f"{where}source is 'hub', which needs {where}name, a dataset on the hub")
    elif config.source not in (*SOURCES, HUB):
        raise refused_source(config.source, [ARITHMETIC, "file", HUB, REASONING_GYM, *SOURCES], where)


def refused_source(source: str, known: Sequence[str], where: str = "data.") -> ValueError:
    """The error for a source that is none, with what it was probably meant to be: the name of a source is often taken
    for the place of the data."""
    hint = f"known are {', '.join(known)}"
    if source in FILES:
        hint = f"{where}source: {source} needs {where}path"
    elif Path(source).exists() or is_file_name(Path(source).name) or source.startswith((".", "/", "~")):
        hint = f"for a file or directory give {where}source=file {where}path={source}"
    elif source.count("/") == 1:
        hint = f"for a dataset on the hub give {where}source=hub {where}name={source}; {hint}"
    return ValueError(f"{where}source is {source!r}; {hint}")


@dataclass(frozen=True, slots=True)
class DataPart:
    """One source of a run's data, and the key of its path."""

    config: DataConfig
    key: str
    column_option: str | None = None
    """How users name a column, with `{role}` and `{name}`, if not by a configuration key."""


def parts_of(config: DataConfig, key: str = "data.path") -> list[DataPart]:
    """The sources in `data.mix`; without a mix, the source itself."""
    if not config.mix:
        return [DataPart(config, key)]
    names = SourceConfig.model_fields
    return [
        DataPart(
            config.model_copy(update={**{name: getattr(one, name) for name in names}, "mix": ()}), f"data.mix.{n}.path"
        )
        for n, one in enumerate(config.mix)
    ]


def dataset_of(config: SourceConfig) -> HubDataset | None:
    """The hub dataset that a source reads; None if it reads none."""
    if config.path is not None:
        return None
    if config.source != HUB:
        return SOURCES.get(config.source)
    assert config.name is not None, "checked before"
    return HubDataset(
        path=config.name,
        revision=config.revision,
        configs=(config.subset,),
        splits=(config.split or "train",),
        level=config.columns.level,
        subject=config.columns.subject,
    )


def hub_items(config: DataConfig, instead: str = "give data.path=FILE") -> list[HubItem]:
    """The hub repositories needed to read the source."""
    items = []
    for part in parts_of(config):
        dataset = dataset_of(part.config)
        if dataset is None:
            continue
        named = part.key.replace("path", "source")
        names = [dataset, *([SOURCES[dataset.excludes]] if dataset.excludes else [])]
        items += [
            HubItem(
                what=named.replace("source", "name") if part.config.source == HUB else f"{named} {part.config.source}",
                repo=one.path,
                kind="dataset",
                revision=one.revision,
                instead=f"it is a path here, for data.source=file data.path={one.path}"
                if Path(one.path).exists()
                else instead,
            )
            for one in names
        ]
    return items


def load_problems(
    config: DataConfig,
    *,
    split: Split,
    seed: int,
    key: str = "data.path",
    column_option: str | None = None,
    need_answer: bool = True,
    with_extra: bool = False,
) -> Loaded:
    """Load the problems of a source in its own order, or those of a mix source by source.

    `split` and `seed` matter only to generators: other sources hold one split each. Messages refer to the file by `key`
    and to a column by `column_option`, with `{role}` and `{name}`. `with_extra` keeps all but problem and answer.
    Raises `ValueError` for an unknown source or a file without usable rows, `FileNotFoundError` for a missing one.
    """
    check_source(config, key)
    parts = parts_of(config, key)
    loaded = [
        _load_part(replace(part, column_option=column_option), split, seed, need_answer, with_extra) for part in parts
    ]
    whole = _mixed(loaded) if config.mix else loaded[0]
    whole.problems[:] = _with_all_columns(whole.problems)
    return whole


def _mixed(loaded: Sequence[Loaded]) -> Loaded:
    whole = Loaded([])
    for number, one in enumerate(loaded):
        whole.problems.extend(replace(each, id=f"{number}-{each.id}", part=number) for each in one.problems)
        whole.dropped.add(one.dropped)
    return whole


def _load_part(part: DataPart, split: Split, seed: int, need_answer: bool, with_extra: bool) -> Loaded:
    config, loaded = part.config, Loaded([])
    unseen = {role: name for role, name in config.columns if name is not None}
    if config.source in GENERATED:
        made = _generated(part, split, seed)
        found: Iterable[Problem] = made if with_extra else (replace(one, extra={}) for one in made)
    else:
        rows = _problem_rows(part, loaded.dropped, need_answer, with_extra, unseen)
        found = map(_problem_of, rows)
    loaded.problems.extend(within_level(found, config.level, loaded.dropped))
    if config.limit is not None:
        del loaded.problems[config.limit :]
    if not loaded.problems:
        if config.path is not None:
            _explain_columns(part, need_answer)
        dropped = loaded.dropped
        reasons = ", ".join(f"{n} × {reason} ({dropped.examples[reason]})" for reason, n in dropped.counts.items())
        named = f"{part.key}: {config.path}" if config.path is not None else f"data.source {config.source!r}"
        raise ValueError(f"{named} has no usable problem: {reasons or 'it is empty'}{remedy(dropped.counts)}")
    if config.path is not None:
        _refuse_unseen(part, unseen)
    return loaded


def _generated(part: DataPart, split: Split, seed: int) -> Iterable[Problem]:
    config = part.config
    if config.source == ARITHMETIC:
        count, limit = config.arithmetic.count, config.limit
        # As with a file, the limit counts the problems that `data.level` leaves.
        wanted = max(count, limit or 0) if config.level else limit or count
        return arithmetic_problems(config.arithmetic, split, wanted, seed)
    where = part.key.removesuffix("path")
    found = task_problems(task_of(config.task, config.task_settings, where), split, seed, where)
    return itertools.islice(found, config.limit or COUNT)


def tasks_of(config: DataConfig) -> list[Task]:
    """The distinct generated tasks whose scorers a grader needs."""
    parts = [part.config for part in parts_of(config) if part.config.source == REASONING_GYM]
    tasks = [task_of(one.task, one.task_settings) for one in parts]
    return list({task.key: task for task in tasks}.values())


def within_level(
    problems: Iterable[Problem], bounds: tuple[float, float] | None, dropped: Dropped
) -> Iterator[Problem]:
    """The problems whose level is within `data.level`, bounds included."""
    for problem in problems:
        if bounds is None:
            yield problem
            continue
        level = number_in(problem.level)
        if level is None:
            reason = "its level (data.columns.level) has no number, or one with a comma, and data.level is given"
            dropped.drop(reason, problem.id)
        elif not bounds[0] <= level <= bounds[1]:
            dropped.drop(f"level outside data.level ({bounds[0]:g} to {bounds[1]:g})", problem.id)
        else:
            yield problem


def _problem_rows(
    part: DataPart, dropped: Dropped, need_answer: bool, with_extra: bool, unseen: dict[str, str] | None = None
) -> Iterator[ProblemRow]:
    """The rows of a source. Removes from `unseen`, columns by role, every column that some row has."""
    config = part.config
    if config.path is not None:
        rows = _looked_at(rows_of(Path(config.path), dropped.drop, part.key, config.split), unseen or {})
        columns = chosen_columns(Columns(), config.columns)
        return problem_rows(rows, columns, dropped.drop, need_answer=need_answer, with_extra=with_extra)
    dataset = dataset_of(config)
    assert dataset is not None, "checked before"
    name = config.source if config.source != HUB else dataset.path.replace("/", "-")
    # For the datasets in the table only the needed columns are read: some have gigabytes of others.
    whole = with_extra and config.source == HUB
    return hub_problem_rows(name, dataset, config.columns, dropped.drop, need_answer, whole)


def _looked_at(rows: Iterable[tuple[str, Row]], unseen: dict[str, str]) -> Iterator[tuple[str, Row]]:
    for where, row in rows:
        for role in [role for role, name in unseen.items() if has_column(row, name)]:
            del unseen[role]
        yield where, row


def _problem_of(row: ProblemRow) -> Problem:
    return Problem(
        id=row.id,
        text=row.asked.text,
        system=row.asked.system,
        continues=row.asked.continues,
        answer=row.answer,
        level=row.level,
        subject=row.subject,
        extra=row.extra,
    )


def turns_left_out(problems: Sequence[Problem]) -> list[str]:
    """A message about problems that follow earlier turns of a chat; empty if there are none."""
    cut = [one.id for one in problems if one.continues]
    message = f"{len(cut):,} problems come after other turns of a chat, and only the user's last turn is asked"
    return [f"{message} (for one, {cut[0]})"] if cut else []


def _with_all_columns(problems: list[Problem]) -> list[Problem]:
    """Give every problem every extra column, with None for those that its row lacks, as in a table."""
    names = dict.fromkeys(name for problem in problems for name in problem.extra)
    if not names:
        return problems
    return [replace(problem, extra={name: problem.extra.get(name) for name in names}) for problem in problems]


def first_problem(config: DataConfig, *, need_answer: bool = True) -> Problem | None:
    """The first usable problem of a file or generator, with its extra columns, read without the rest; None for a hub
    dataset."""
    part = parts_of(config)[0]
    if part.config.source in GENERATED:
        one = replace(part, config=part.config.model_copy(update={"limit": 1}))
        return next(iter(_generated(one, "train", seed=0)), None)
    if part.config.path is None:
        return None
    rows = _problem_rows(part, Dropped(), need_answer, with_extra=True)
    return next(map(_problem_of, rows), None)


def _refuse_unseen(part: DataPart, unseen: dict[str, str]) -> None:
    """Raises `ValueError` for a column that the user named but no row has: it would silently be empty."""
    for role, name in unseen.items():
        _, row = next(rows_of(Path(str(part.config.path)), lambda *_: None, part.key, part.config.split))
        raise ValueError(
            f"{part.key.removesuffix('path')}columns.{role} is {name!r}, and no row of {part.config.path} has such a "
            f"column; its columns are {named(paths_of(row))}"
        )


def _explain_columns(part: DataPart, need_answer: bool) -> None:
    """Raises `ValueError` if the first row lacks the columns that are read: then all rows lack them."""
    config, key = part.config, part.key
    assert config.path is not None
    _, row = next(rows_of(Path(config.path), lambda *_: None, key, config.split), ("", None))
    option = part.column_option or ("data.columns.{role}={name}" if key == "data.path" else None)
    if key.startswith("data.mix"):
        option = "columns.{role}={name} there"
    columns = chosen_columns(Columns(), config.columns)
    if row is None:
        return
    if message := missing_columns(row, columns, Path(config.path), key, need_answer=need_answer, option=option):
        raise ValueError(f"{key}: {config.path} has {message}")
