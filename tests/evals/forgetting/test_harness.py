"""lm-evaluation-harness on our engine: the same answers as transformers gives, from the same requests as its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from rollout.types import AdapterRef
from tests.helpers.forgetting import SUMS, Policies, write_task


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["base", "moved"])
def test_the_harness_scores_what_transformers_scores(
    vllm_engine: Any, policies: Policies, tokenizer: Any, harness: Any, tmp_path: Path, kind: str
) -> None:
    ref = policies.moved_ref if kind == "moved" else None
    likelihoods = [[sum_of(policies, tokenizer, ref, row["sum"], option) for option in row["options"]] for row in SUMS]
    right = [np.argmax(values) == row["right"] for values, row in zip(likelihoods, SUMS, strict=True)]
    normed = [
        np.argmax([value / len(option) for value, option in zip(values, row["options"], strict=True)]) == row["right"]
        for values, row in zip(likelihoods, SUMS, strict=True)
    ]
    write_task(tmp_path)
    write_task(tmp_path, "plain", metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}])
    tasks = harness.load_tasks(["sums", "plain"], tmp_path, tokenizer)
    by_norm, plain = tasks.score(vllm_engine, ref, None)
    assert (by_norm.metric, plain.metric) == ("acc_norm", "acc")
    assert by_norm.scores_D.tolist() == normed
    assert plain.scores_D.tolist() == right
    if kind == "base":
        assert 0 < np.mean(normed) < 1
        assert normed != right, "the task does not tell the two metrics apart"
    assert [len(score.scores_D) for score in tasks.score(vllm_engine, ref, 2)] == [2, 2]


def sum_of(policies: Policies, tokenizer: Any, ref: AdapterRef | None, problem: str, option: str) -> float:
    """log p of the option and the newline before it: the harness moves trailing whitespace into the continuation."""
    context, whole = (tokenizer(text).input_ids for text in (f"{problem}=?", f"{problem}=?\n{option}"))
    logprobs = policies.logprobs(ref, whole)
    return float(sum(logprobs[i - 1, whole[i]] for i in range(len(context), len(whole))))


def test_no_end_of_text_stands_before_what_is_scored(tokenizer: Any, harness: Any) -> None:
    """A tokenizer that was saved for training ends every text: the context ended too, and the harness, which cuts the
    whole by the context's length, left out the first token of every answer and scored the end."""
    lm = harness.EngineLM(None, tokenizer, None)
    context, continuation = lm._encode_pair("1+1=?\n", "2")
    assert tokenizer.decode(continuation) == "\n2"
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    assert tokenizer.encode("1+1")[-1] == end[1]
    assert lm._encode_pair("1+1=?\n", "2") == (context, continuation)


def test_tasks_that_cannot_be_served_are_refused(
    tokenizer: Any, harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path, "free", output_type="generate_until", metric_list=[{"metric": "exact_match"}])
    with pytest.raises(ValueError, match="free is generate_until"):
        harness.load_tasks(["free"], tmp_path, tokenizer)
    # Loading all tasks that come with the harness takes most of a minute.
    own = harness.TaskManager
    monkeypatch.setattr(harness, "TaskManager", lambda **asked: own(**{**asked, "include_defaults": False}))
    with pytest.raises(ValueError, match="no task hellaswg"):
        harness.load_tasks(["free", "hellaswg"], tmp_path, tokenizer)


# Rows with the columns of the hub's datasets.
HUB_ROWS: dict[str, list[dict[str, Any]]] = {
    "hellaswag": [
        {
            "activity_label": "Baking",
            "ctx_a": "A man weighs flour [title] and salt.",
            "ctx_b": "he",
            "endings": ["stirs  them.", "[substeps] sings.", "swims.", "reads them a letter."],
            "label": "1",
        }
    ],
    "arc_challenge": [
        {
            "question": "What melts first?",
            "choices": {"text": ["ice", "iron", "sand"], "label": ["1", "2", "3"]},
            "answerKey": "1",
        },
        {"question": "What floats?", "choices": {"text": ["lead", "cork"], "label": ["A", "B"]}, "answerKey": "B"},
    ],
    "winogrande": [
        {
            "sentence": "The cup broke the plate because the _ fell.",
            "option1": "cup",
            "option2": "plate",
            "answer": "1",
        },
        {"sentence": "Ann asked Sue, and _ answered.", "option1": "Ann", "option2": "Sue", "answer": "2"},
    ],
}


def test_the_local_copies_of_the_guide_ask_what_the_harness_asks(tokenizer: Any, harness: Any, tmp_path: Path) -> None:
    import lm_eval

    guide = (Path(__file__).parents[3] / "docs" / "forgetting.md").read_text()
    files = dict(re.findall(r"```yaml\n# (\w+)\.yaml\n(.*?)```", guide, re.DOTALL))
    assert files.keys() == HUB_ROWS.keys()
    packaged = {name: f"{name}/{name}" for name in files}
    packaged |= {"arc_challenge": "arc/arc_challenge", "winogrande": "winogrande/default"}
    for kind in ("guide", "harness"):
        (tmp_path / kind).mkdir()
    for name, text in files.items():
        rows = tmp_path / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in HUB_ROWS[name]))
        split = "test" if name == "arc_challenge" else "validation"
        (tmp_path / "guide" / f"{name}.yaml").write_text(text.replace("FILES", str(tmp_path)))
        original = {
            "include": f"{Path(lm_eval.__file__).parent}/tasks/{packaged[name]}.yaml",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(rows)}},
            "training_split": None,
            **({"validation_split": None} if split == "test" else {}),
        }
        (tmp_path / "harness" / f"{name}.yaml").write_text(json.dumps({"task": name, **original}))
    ours, theirs = (requests_of(harness, tmp_path / kind, tokenizer) for kind in ("guide", "harness"))
    assert {name: len(asked) for name, asked in ours.items()} == {"hellaswag": 4, "arc_challenge": 5, "winogrande": 4}
    assert ours == theirs


def requests_of(harness: Any, directory: Path, tokenizer: Any) -> dict[str, list[Any]]:
    """(context, continuation), which of them is right, and the metrics, for every request of the three tasks."""
    tasks = harness.load_tasks(list(HUB_ROWS), directory, tokenizer).loaded["tasks"]
    for task in tasks.values():
        task.build_all_requests()
    return {
        name: [(one.args, task.doc_to_target(one.doc), sorted(task.aggregation())) for one in task.instances]
        for name, task in tasks.items()
    }
