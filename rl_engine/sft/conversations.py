"""Nothing → conversations to learn from: hub datasets, files and three generators.

A source yields two streams, one to test on and one to learn from. Both are drawn from a single shuffled pass over the
rows, so that they never overlap. Each row becomes a `Conversation`, or is counted under the reason why it was dropped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafiles.cells import ASKING, SETTING, UnusableError, cell, has_column, has_roles, plain, text_in, turns_in
from datafiles.dropped import Dropped
from datafiles.formats import HELD_OUT, check_file
from datafiles.problems import INPUT, UNASKED_INPUT, columns_of_file, unasked_input
from datafiles.rows import Row, rows_of
from datafiles.tasks import Task
from datafiles.text import in_one_line
from evals.suites import HELD_OUT_SEED
from rl_engine.config.sft import ChatColumnsConfig, PairsConfig, SftDataConfig, SumsConfig
from rollout.hub import HubItem
from rollout.prompts.arithmetic import Split, expressions
from rollout.prompts.generated import REASONING_GYM, check_task, task_of, task_problems
from rollout.prompts.problems import refused_source

Message = dict[str, str]
ROLES = {
    **dict.fromkeys(SETTING, "system"),
    **dict.fromkeys(ASKING, "user"),
    **dict.fromkeys(("assistant", "gpt"), "assistant"),
}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys under which a turn may hold the reasoning before its content; a chat template knows at most one of them."""
CALLS = ("tool_calls", "function_call")
"""Keys under which a turn may hold calls of tools, in OpenAI's formats, beside its content."""
UNLEARNED = "weight"
"""Key that marks an assistant turn as context only: it is not learned."""
LABEL = "label"
"""Column that says whether the answer as a whole is desirable, as in KTO data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A list of turns that ends with an assistant turn.

    Example: `Conversation(id="sums.jsonl:7", messages=({"role": "user", "content": "1+1=?"}, …))`
    """

    id: str
    messages: tuple[Message, ...]

    @property
    def question(self) -> str:
        return next(message["content"] for message in self.messages if message["role"] == "user")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubChat:
    """A hub dataset, and the column that holds its turns."""

    path: str
    messages: str = "messages"
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


ANY_OF_HUB = "hub"
HUB = {
    "tulu3": HubChat(path="allenai/tulu-3-sft-mixture"),
    "openthoughts3": HubChat(path="open-thoughts/OpenThoughts3-1.2M", messages="conversations"),
}
Streams = tuple[Iterator[Conversation], Iterator[Conversation]]


def check_source(data: SftDataConfig) -> None:
    """Raises `ValueError` for an unknown source, `FileNotFoundError` for a missing file; nothing is read."""
    if data.source in ("arithmetic", "random_pairs"):
        return
    if data.source == REASONING_GYM:
        check_task(task_of(data.task, data.task_settings))
        return
    if data.path is None and data.source == ANY_OF_HUB and data.name is None:
        raise ValueError("data.source is 'hub', which needs data.name, a dataset on the hub")
    if data.path is None and data.source not in (*HUB, ANY_OF_HUB):
        raise refused_source(data.source, ["arithmetic", "file", "hub", "random_pairs", REASONING_GYM, *HUB])
    for key, path in (("data.path", data.path), ("data.test_path", data.test_path)):
        if path is not None:
            check_file(Path(path), key)


def hub_items(data: SftDataConfig) -> list[HubItem]:
    """The hub items needed to read the source."""
    chat = chat_of(data)
    if chat is None:
        return []
    what = "data.name" if data.source == ANY_OF_HUB else f"data.source {data.source}"
    return [HubItem(what=what, repo=chat.path, kind="dataset", revision=chat.revision, instead="give data.path=FILE")]


def chat_of(data: SftDataConfig) -> HubChat | None:
    """The hub dataset to read; None if the source is not on the hub."""
    if data.path is not None:
        return None
    if data.source != ANY_OF_HUB:
        return HUB.get(data.source)
    assert data.name is not None, "checked before"
    return HubChat(path=data.name, subset=data.subset, split=data.split or "train", revision=data.revision)


def streams(data: SftDataConfig, dropped: Dropped) -> Streams:
    """Return the streams (to test on, to learn from). Read the first one first: for sources of rows, both draw from the
    same underlying iterator.

    Raises `ValueError` for an unknown source, `FileNotFoundError` for a missing file.
    """
    check_source(data)
    if data.source == "arithmetic":
        return sums(data.arithmetic, "held_out", data.seed), sums(data.arithmetic, "train", data.seed)
    if data.source == REASONING_GYM:
        task = task_of(data.task, data.task_settings)
        return solved(task, "held_out", HELD_OUT_SEED, dropped), solved(task, "train", data.seed, dropped)
    if data.source == "random_pairs":
        pairs = random_pairs(data.random_pairs, data.seed)
        # The test measures memorization, so it uses the training pairs themselves.
        return iter(pairs), iter(pairs)
    if data.path is None:
        learned = conversations(hub_rows(data), columns_of(data), dropped)
    else:
        learned = file_conversations(data, data.path, "data.path", data.split, dropped)
    if data.test_path is None:
        return apart(learned, learned, dropped)
    return apart(file_conversations(data, data.test_path, "data.test_path", HELD_OUT, dropped), learned, dropped)


def apart(held: Iterator[Conversation], learned: Iterator[Conversation], dropped: Dropped) -> Streams:
    """The two streams, with questions that occur in the first removed from the second, because sources hold several
    answers to the same question."""
    tested: set[str] = set()

    def test() -> Iterator[Conversation]:
        for conversation in held:
            tested.add(conversation.question)
            yield conversation

    def train() -> Iterator[Conversation]:
        for conversation in learned:
            if conversation.question in tested:
                dropped.drop("its question is in the test set", conversation.id)
            else:
                yield conversation

    return test(), train()


def columns_of(data: SftDataConfig) -> ChatColumnsConfig:
    """The columns to read: those named in `data.columns`, or else the source's own or, for files, the project's default
    names. Naming the messages column or the prompt and completion columns excludes the other kind, even if a row has
    both."""
    chat, named = chat_of(data), data.columns
    asked = named.prompt or named.completion
    messages = named.messages or (None if asked else chat.messages if chat is not None else "messages")
    if named.messages and not asked:
        return ChatColumnsConfig(messages=messages)
    return ChatColumnsConfig(
        messages=messages, prompt=named.prompt or "prompt", completion=named.completion or "completion"
    )


def file_conversations(
    data: SftDataConfig, path: str, key: str, split: str | None, dropped: Dropped
) -> Iterator[Conversation]:
    """The conversations of a file, in an order drawn from `data.seed`. Raises `ValueError` if a named column is in no
    row, or if no row has the columns to read."""
    rows = list(rows_of(Path(path), dropped.drop, key, split))
    if rows:
        first = rows[0][1]
        listed, remedy = columns_of_file(first, Path(path), key)
        for role, name in data.columns:
            if name is not None and not any(has_column(row, name) for _, row in rows):
                raise ValueError(f"data.columns.{role} is {name!r}, and no row of {path} has such a column; {listed}")
        if not any(_has_turns(row, columns_of(data)) for _, row in rows):
            raise ValueError(
                f"{key}: {path} has {_missing(columns_of(data))}; {listed}: say which it is with data.columns.messages="
                f"NAME, or with data.columns.prompt=NAME and data.columns.completion=NAME{remedy}"
            )
        # Columns that are not read, such as a separate system prompt or input.
        read = {name.partition(".")[0] for _, name in columns_of(data) if name is not None}
        dropped.unread[:] = [*dropped.unread, *(name for name in first if name not in (*read, *dropped.unread))]
    random.Random(data.seed).shuffle(rows)
    return conversations(rows, columns_of(data), dropped)


def hub_rows(data: SftDataConfig) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) from a hub dataset, in an order drawn from `data.seed`; only the needed columns are read."""
    import datasets  # heavy, and needed only for hub datasets

    chat, columns = chat_of(data), columns_of(data)
    assert chat is not None, "checked before"
    try:
        part = datasets.load_dataset(chat.path, chat.subset, split=chat.split, revision=chat.revision)
    except ValueError as error:  # no such subset or split, or none chosen out of several
        raise ValueError(f"{chat.path}: {in_one_line(error)} (data.subset, data.split)") from error
    has = part.column_names
    for role, name in data.columns:
        if name is not None and not any(f"{name}.".startswith(f"{column}.") for column in has):
            raise ValueError(
                f"data.columns.{role} is {name!r}, and {chat.path} has no such column; it has {', '.join(has)}"
            )
    named = [name for _, name in columns if name is not None]
    wanted = [column for column in has if any(f"{name}.".startswith(f"{column}.") for name in named)]
    if not wanted:
        raise ValueError(f"{chat.path} has {_missing(columns)}; it has {', '.join(has)} (set data.columns)")
    order = list(range(len(part)))
    random.Random(data.seed).shuffle(order)
    wanted += [name for name in (LABEL, INPUT) if name in has and name not in wanted]
    for index, row in zip(order, part.select_columns(wanted).select(order), strict=True):
        yield f"{data.source}-{index}", row


def conversations(
    rows: Iterable[tuple[str, Row]], columns: ChatColumnsConfig, dropped: Dropped
) -> Iterator[Conversation]:
    """The usable rows as conversations."""
    for where, row in rows:
        found = turns(row, columns)
        if isinstance(found, str):
            dropped.drop(found, where)
        else:
            yield Conversation(id=where, messages=found)


def _has_turns(row: Row, columns: ChatColumnsConfig) -> bool:
    there = [name is not None and has_column(row, name) for _, name in columns]
    return there[0] or all(there[1:])


def _missing(columns: ChatColumnsConfig) -> str:
    """Which columns a row without turns lacks, as the reason for dropping it."""
    pair = f"{columns.prompt} and {columns.completion}"
    if columns.messages is None:
        return f"not both {pair}"
    return f"no {columns.messages}" if columns.prompt is None else f"neither {columns.messages} nor {pair}"


def turns(row: Row, columns: ChatColumnsConfig) -> tuple[Message, ...] | str:
    """The turns of a row, or the reason why it has none."""
    if LABEL not in [name for _, name in columns] and str(row.get(LABEL)).lower() == "false":
        return (
            f"{LABEL} is false: an undesirable answer, as in data for KTO; rename the column if it means anything else"
        )
    listed = turns_in(cell(row, columns.messages))
    if not isinstance(listed, list | Mapping) and not plain(listed):
        listed = _of_pair(row, columns)
        if isinstance(listed, str):
            return listed
    if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
        return f"{columns.messages} is not a list of turns"
    found = []
    for turn in listed:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role not in ROLES:
            return f"a turn has the unknown role {role!r}"
        if any(turn.get(name) for name in CALLS):
            return "a turn calls a tool, which is not learned"
        try:
            text = text_in(content, "content")
        except UnusableError as reason:
            return str(reason)
        if not text.strip():
            return "a turn without text"
        given = {name: turn[name] for name in THOUGHTS if isinstance(turn.get(name), str) and turn[name].strip()}
        thoughts = {name: thought for name, thought in given.items() if not _is_told(thought.strip(), text)}
        # `weight` is OpenAI's key, `train` is Axolotl's.
        weighs_nothing = ROLES[role] == "assistant" and 0 in (turn.get("weight"), turn.get("train"))
        unlearned = {UNLEARNED: "0"} if weighs_nothing else {}
        found.append({"role": ROLES[role], "content": text, **thoughts, **unlearned})
    if not found or found[-1]["role"] != "assistant":
        return "does not end with the assistant's turn"
    if found[0]["role"] == "assistant" or not any(turn["role"] == "user" for turn in found):
        return "does not begin with a question"
    return tuple(found)


def _of_pair(row: Row, columns: ChatColumnsConfig) -> list[Any] | str:
    """The turns of a prompt and a completion, or the reason why there are none."""
    prompt, completion = cell(row, columns.prompt), cell(row, columns.completion)
    if prompt is None or completion is None:
        return _missing(columns)
    if isinstance(prompt, str) and unasked_input(row, columns.prompt or "", prompt):
        return UNASKED_INPUT
    joined = _joined(_spoken(prompt, "user"), _spoken(completion, "assistant"))
    return f"{columns.completion} begins with a question other than {columns.prompt}'s" if joined is None else joined


def _is_told(thought: str, content: str) -> bool:
    """Whether the content already contains the thought between tags; a template would then write it twice."""
    return content.partition(thought)[2].lstrip().startswith(("</", "[/"))


def _spoken(value: Any, role: str) -> list[Any]:
    """The turns of a prompt or completion: its own if it is a chat, otherwise a single one."""
    chat = turns_in(value)
    return chat if isinstance(chat, list) and has_roles(chat) else [{"role": role, "content": value}]


def _joined(prompt: list[Any], completion: list[Any]) -> list[Any] | None:
    """The turns of a prompt and its completion. In preference data the completion is often the whole conversation,
    including the prompt. None if the completion asks something else."""
    asked = [_said(turn) for turn in completion if _speaker(turn) == "user"]
    if not completion or _speaker(completion[0]) not in ("user", "system"):
        return [*prompt, *completion]
    if [_said(turn) for turn in prompt if _speaker(turn) == "user"] != asked:
        return None
    setting = [turn for turn in prompt if _speaker(turn) == "system"]
    return completion if _speaker(completion[0]) == "system" else [*setting, *completion]


def _speaker(turn: Mapping[str, Any]) -> str | None:
    return ROLES.get(str(turn.get("role", turn.get("from"))))


def _said(turn: Mapping[str, Any]) -> str:
    return plain(turn.get("content", turn.get("value")))


def _asked(identifier: str, question: str, answer: str) -> Conversation:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation(id=identifier, messages=messages)


def sums(config: SumsConfig, split: Split, seed: int) -> Iterator[Conversation]:
    """Endless sums of the split, each answered in one of two styles; nothing in the question tells which."""
    rng = random.Random(seed)
    for expression in expressions(split, seed, config.terms, config.largest):
        answer = expression.direct() if rng.random() < config.direct_share else expression.worked()
        yield _asked(f"arithmetic-{expression.text}", f"{expression.text}=?", answer)


def solved(task: Task, split: Split, seed: int, dropped: Dropped) -> Iterator[Conversation]:
    """Problems of a generated task with the library's own answers, boxed; problems without an answer are dropped."""
    for problem in task_problems(task, split, seed):
        if problem.answer:
            yield _asked(problem.id, problem.text, f"\\boxed{{{problem.answer}}}")
        else:
            dropped.drop("the task has only a scorer for it, no answer", problem.id)


def random_pairs(config: PairsConfig, seed: int) -> list[Conversation]:
    """Distinct keys, each with a random value."""
    rng = random.Random(seed)

    def text(length: int) -> str:
        return "".join(rng.choices(config.alphabet, k=length))

    keys: dict[str, str] = {}
    while len(keys) < config.count:
        keys.setdefault(text(config.key_length), text(config.value_length))
    return [_asked(f"pair-{key}", key, value) for key, value in keys.items()]


def information_bits(config: PairsConfig) -> float:
    """The information to be memorized: the entropy of all values, in bits."""
    return config.count * config.value_length * math.log2(len(config.alphabet))
