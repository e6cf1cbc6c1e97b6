"""Tasks of lm-evaluation-harness → scores of an adapter, from our engine. The only file that imports lm_eval.

The harness reads the data, writes the prompts and computes the metrics; our engine computes the likelihood of each
continuation. The harness's own vLLM class would start another engine for each adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from evals.forgetting.table import TaskScore
from rollout.engine import ScoringEngine
from rollout.prompts.renderer import encode_beginning
from rollout.types import AdapterRef

Ids = Sequence[int]
Progress = Callable[[int, int], None]
"""Called with (rows scored, rows in total)."""

# The metric that is usually quoted comes first: acc_norm for HellaSwag and ARC; WinoGrande has only acc.
METRICS = ("acc_norm", "acc")
FEWSHOT_SEED = 1234  # the harness's own
ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks with their data, ready to score any model."""

    loaded: Any
    """The return value of lm_eval's `TaskManager.load`."""
    tokenizer: PreTrainedTokenizerBase

    def score(
        self, engine: ScoringEngine, adapter: AdapterRef | None, limit: int | None, progress: Progress | None = None
    ) -> tuple[TaskScore, ...]:
        """The score on each task, over its first `limit` documents or over all."""
        for task in self.loaded["tasks"].values():
            task.set_fewshot_seed(FEWSHOT_SEED)  # every model sees the same examples
        # Without the harness's standard errors, which divide by zero if there is only one document.
        lm = EngineLM(engine, self.tokenizer, adapter, progress)
        found = evaluate(lm, self.loaded, limit=limit, bootstrap_iters=0)
        return tuple(_task_score(name, found["samples"][name]) for name in self.loaded["tasks"])

    def describe(self) -> dict[str, Any]:
        """Everything that a score depends on, apart from the model."""
        return {
            name: {
                "version": task.VERSION,
                "fewshot": task.config.num_fewshot,
                "documents": len(task.eval_docs),
                "file": _file_of(task),
            }
            for name, task in self.loaded["tasks"].items()
        }


def load_tasks(names: Sequence[str], directory: Path | None, tokenizer: PreTrainedTokenizerBase) -> Tasks:
    """Load tasks by name, first from the YAML files in `directory` and then from those that come with the harness.

    Raises `ValueError` for an unknown task, or one that is not answered by likelihoods.
    """
    manager = TaskManager(include_path=directory, include_defaults=False)
    if not set(names) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=directory)  # reads thousands of files
    unknown = [name for name in names if name not in manager.all_subtasks]
    if unknown:
        where = f"in {directory} or " if directory else ""
        raise ValueError(
            f"--tasks: no task {', '.join(unknown)} {where}in lm_eval (a group must be given task by task)"
        )
    loaded = manager.load(list(names))
    for name, task in loaded["tasks"].items():
        if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
            raise ValueError(
                f"--tasks: {name} is {task.OUTPUT_TYPE}; only multiple_choice and loglikelihood are served"
            )
        if task.config.num_fewshot is None:
            task.set_config("num_fewshot", 0)
    return Tasks(loaded, tokenizer)


def _file_of(task: Any) -> str:
    """`lm_eval` for a task that comes with it, otherwise the name of its file."""
    file = Path(task.config.metadata["config_source"])
    return "lm_eval" if Path(lm_eval.__file__).parent in file.parents else file.name


def _task_score(name: str, samples: Sequence[dict[str, Any]]) -> TaskScore:
    metric = next((metric for metric in METRICS if metric in samples[0]), None)
    if metric is None:
        raise ValueError(f"--tasks: {name} has neither {' nor '.join(METRICS)}, but {samples[0]['metrics']}")
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return TaskScore(task=name, metric=metric, scores_D=np.array([float(sample[metric]) for sample in ordered]))


class EngineLM(TemplateLM):  # type: ignore[misc]  # lm_eval is unannotated
    """The base model or one adapter, with the interface that lm_eval expects of a model."""

    def __init__(
        self,
        engine: ScoringEngine,
        tokenizer: PreTrainedTokenizerBase,
        adapter: AdapterRef | None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.engine, self.tokenizer, self.adapter, self.progress = engine, tokenizer, adapter, progress

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: the beginning-of-sequence token, if there is one."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokenize as lm_eval's own classes do: with special tokens, but never a second beginning-of-sequence token.
        Unlike theirs, without an end: the harness cuts a context and its continuation apart by the context's length."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(str(self.tokenizer.decode(self.prefix_token_id)))
        if add_special_tokens:
            return encode_beginning(self.tokenizer, string)
        return list(self.tokenizer.encode(string, add_special_tokens=False))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], Ids, Ids]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(Σ log p of the continuation in nats, whether greedy decoding would write it) for each request."""
        answers = []
        for start in range(0, len(requests), ROWS_AT_ONCE):
            rows = [(context, continuation) for _, context, continuation in requests[start : start + ROWS_AT_ONCE]]
            answers += [(sum(one.logprobs), all(one.greedy)) for one in self.engine.score(rows, self.adapter)]
            if self.progress is not None:
                self.progress(len(answers), len(requests))
        return answers

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("perplexities of whole documents are not supported: choose multiple-choice tasks")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("generating tasks are not supported: choose multiple-choice tasks")
