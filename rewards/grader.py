"""Completions and references → verdicts and rewards: the public interface of this package."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from datafiles.cells import for_json
from datafiles.tasks import Task, packed
from rewards.config import RewardConfig
from rewards.extraction.marks import open_thought
from rewards.shaping import shaping_terms
from rewards.types import FAILED, GradeItem, GradeResult, Verdict
from rewards.workers import wire
from rewards.workers.pool import Pool

MAX_COMPLETION_CHARS = 4_000_000
MAX_REFERENCE_CHARS = 20_000

Gradable = GradeItem | tuple[str, str]


class Grader:
    """Grades in worker processes that start with the first item and can be killed individually.

    May be used from several threads (calls take turns) and from asyncio through `asyncio.to_thread`.
    A forked child that inherits a grader starts workers of its own.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        timeout_s: float = 5.0,
        config: RewardConfig | None = None,
        tasks: Sequence[Task] = (),
    ) -> None:
        """`tasks` are the generated tasks whose scorers are needed."""
        self._tasks = [{"name": task.name, "settings": dict(task.settings)} for task in tasks]
        self.config = config or RewardConfig(workers=workers, timeout_s=timeout_s)
        self._lock = threading.Lock()
        self._open_pool()
        self._closed = False

    @classmethod
    def from_config(cls, config: RewardConfig, tasks: Sequence[Task] = ()) -> Self:
        return cls(config=config, tasks=tasks)

    def grade(self, items: Sequence[Gradable]) -> list[GradeResult]:
        """Grade the items and return the results in order. Never raises because of an item's content, but `TypeError`
        for what is no item: of a text, the first two characters would be graded."""
        return self._grade([_item_of(item) for item in items])

    def check_references(
        self, references: Sequence[str], entries: Sequence[Mapping[str, Any]] | None = None
    ) -> list[GradeResult]:
        """Grade each reference against itself: no completion can be rewarded for one that is not `correct`.

        The reference itself is the answer, whatever the answer forms, and no shaping term is added. `entries` are the
        generated tasks' entries, as in `GradeItem.entry`; the tasks' own scorers judge them.
        """
        if isinstance(references, str) or not all(isinstance(text, str) for text in references):
            raise TypeError(f"check_references takes a list of texts, not {references!r:.80}")
        requests: list[wire.Message] = [
            {"completion": text, "reference": text, "as_answer": True, "entry": packed(entry)}
            for text, entry in zip(references, entries or [{}] * len(references), strict=True)
        ]
        problems = [_too_long(len(text), MAX_REFERENCE_CHARS, "reference") for text in references]
        return [
            GradeResult(
                verdict=Verdict(reply["verdict"]),
                reward=float(reply["verdict"] == Verdict.CORRECT),
                extracted=reply["extracted"],
                detail=reply["detail"],
            )
            for reply in self._replies(requests, problems)
        ]

    @property
    def restarts(self) -> int:
        """The number of workers that were killed or died so far."""
        return self._pool.restarts

    def close(self) -> None:
        """End the workers. Closing twice is harmless; grading afterwards, or a call in progress in another thread, is
        an error."""
        self._pool.abandoned = True
        with self._lock:
            self._closed = True
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_pool(self) -> None:
        self._owner_pid = os.getpid()
        self._pool = Pool(
            workers=self.config.workers,
            timeout_s=self.config.timeout_s,
            settings={**self.config.model_dump(mode="json"), "tasks": self._tasks},
        )
        self._finalizer = weakref.finalize(self, _close_in_owner, self._pool, self._owner_pid)

    def _grade(self, items: Sequence[GradeItem]) -> list[GradeResult]:
        replies = self._replies([_request(item) for item in items], [_size_problem(item) for item in items])
        return [self._result(item, reply) for item, reply in zip(items, replies, strict=True)]

    def _replies(self, requests: Sequence[wire.Message], problems: Sequence[str]) -> list[wire.Message]:
        """One reply per request, in order. Requests with a size problem never reach a worker."""
        if os.getpid() != self._owner_pid:
            # After a fork the lock may be held by a thread that does not exist here.
            self._finalizer.detach()
            self._lock = threading.Lock()
            self._open_pool()
        with self._lock:
            if self._closed:
                raise ValueError("this grader is closed")
            sendable = [i for i, problem in enumerate(problems) if not problem]
            answered = dict(zip(sendable, self._pool.run([requests[i] for i in sendable]), strict=True))
        return [_oversized(problem) if problem else answered[i] for i, problem in enumerate(problems)]

    def _result(self, item: GradeItem, reply: wire.Message) -> GradeResult:
        verdict = Verdict(reply["verdict"])
        extracted, detail = reply["extracted"], reply["detail"]
        if "function" in reply and reply["function"] is None:
            detail = "the reward function returned None"
            return GradeResult(verdict=verdict, reward=0.0, extracted=extracted, detail=detail, scored=False)
        if verdict in FAILED:
            # Nothing is known about the completion, so no term may be added or subtracted.
            scored = not self.config.mask_unscored
            return GradeResult(verdict=verdict, reward=0.0, extracted=extracted, detail=detail, scored=scored)
        if item.truncated and self.config.mask_truncated:
            detail = "cut off by max_tokens (rewards.mask_truncated)"
            return GradeResult(verdict=verdict, reward=0.0, extracted=extracted, detail=detail, scored=False)
        terms = shaping_terms(item, self.config)
        if "function" in reply:
            terms["function"] = self.config.function_weight * reply["function"]
        if verdict is Verdict.INCORRECT and reply.get("score"):
            terms["partial"] = self.config.correct_weight * reply["score"]
        reward = self.config.correct_weight if verdict is Verdict.CORRECT else 0.0
        return GradeResult(
            verdict=verdict,
            reward=reward + sum(terms.values()),
            extracted=extracted,
            terms=terms,
            detail=detail,
        )


def _close_in_owner(pool: Pool, owner_pid: int) -> None:
    if os.getpid() == owner_pid:
        pool.close()


def _item_of(given: Any) -> GradeItem:
    texts = (given.completion, given.reference) if isinstance(given, GradeItem) else given
    if not isinstance(texts, tuple | list) or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        what = f"{given!r:.80} ({type(given).__name__})"
        raise TypeError(
            f"grade takes a list of (completion, reference), both of them text, or of GradeItem, not {what}"
        )
    return given if isinstance(given, GradeItem) else GradeItem(completion=texts[0], reference=texts[1])


def _request(item: GradeItem) -> wire.Message:
    return {
        "completion": item.completion,
        "reference": item.reference,
        "problem": item.problem,
        "tokens": item.tokens,
        "opened": open_thought(item.prompt),
        "extra": for_json(dict(item.extra)),
        "entry": packed(item.entry),
    }


def _size_problem(item: GradeItem) -> str:
    """Which size limit an item exceeds, or empty. Checked in the caller's process, before anything reads the text."""
    return _too_long(len(item.completion), MAX_COMPLETION_CHARS, "completion") or _too_long(
        len(item.reference), MAX_REFERENCE_CHARS, "reference"
    )


def _too_long(length: int, limit: int, what: str) -> str:
    return f"{what} over {limit} characters" if length > limit else ""


def _oversized(problem: str) -> wire.Message:
    return {"verdict": Verdict.UNPARSEABLE, "extracted": None, "detail": problem}
