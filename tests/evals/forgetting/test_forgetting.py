"""The forgetting command: from arguments to prompts, adapters, engine, table and JSON."""

from __future__ import annotations

import errno
import json
import math
import re
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from evals.forgetting.__main__ import ForgettingOptions, app, find_adapters, run
from evals.forgetting.prompts import read_task_prompts
from evals.forgetting.table import PolicyResult, TaskScore, changes, grid, mean_of_means, to_json
from rollout.adapters import AdapterError, AdapterStore
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings
from tests.helpers.forgetting import Policies, write_task
from tests.helpers.precision import LOGPROB_NATS


def test_changes_are_compared_document_by_document() -> None:
    one, two = np.array([1.0, 0, 1, 1, 0]), np.array([1.0, 0, 0, 1, 1])
    base = policy(
        "base", TaskScore(task="x", metric="acc", scores_D=one), TaskScore(task="y", metric="acc", scores_D=two)
    )
    other = policy(
        "p-v1", TaskScore(task="x", metric="acc", scores_D=two), TaskScore(task="y", metric="acc", scores_D=two)
    )
    first, second = changes(other, base)
    assert (first.value, first.error) == pytest.approx((0.0, math.sqrt((1 + 1) / 4 / 5)))
    assert (second.value, second.error) == (0.0, 0.0)
    mean = mean_of_means([first, second])
    assert mean.error == pytest.approx(first.error / 2)
    assert grid([base, other])[2] == ("p-v1", "60.0 ± 24.5 %", "60.0 ± 24.5 %", "60.0 ± 17.3 %", "+0.0 ± 15.8")
    # Two of five documents more on the first task: 100 − 60 points there, and half of that over both.
    better = policy("p-v2", replace(base.scores[0], scores_D=np.ones(5)), base.scores[1])
    assert grid([base, better])[2] == ("p-v2", "100.0 ± 0.0 %", "60.0 ± 24.5 %", "80.0 ± 12.2 %", "+20.0 ± 12.2")
    found = to_json([base, better])[1]
    half = math.sqrt(0.3 / 5) / 2
    assert found["tasks"]["x"]["change"] == pytest.approx(0.4)
    assert found["mean"] == pytest.approx(
        {"accuracy": 0.8, "accuracy_standard_error": half, "change": 0.2, "change_standard_error": half}
    )


def policy(label: str, *scores: TaskScore) -> PolicyResult:
    return PolicyResult(label=label, sha256=None, scores=scores, divergence=None, scoring_gap=None)


def test_one_document_has_no_standard_error() -> None:
    one = policy("base", TaskScore(task="x", metric="acc", scores_D=np.ones(1)))
    text = json.dumps(to_json([one]), allow_nan=False)
    assert json.loads(text)[0]["mean"] == {"accuracy": 1.0, "accuracy_standard_error": None}
    other = replace(one, label="p-v1")
    assert grid([one, other])[1:] == [("base", *["100.0 %"] * 2, ""), ("p-v1", *["100.0 %"] * 2, "+0.0")]


def test_prompts_of_a_run_are_its_own(tokenizer: Any, tmp_path: Path) -> None:
    """A sample of the training problems, prompted as in the run."""
    run_file = tmp_path / "config.yaml"
    sections: dict[str, Any] = {
        "seed": 4,
        "data": {"source": "arithmetic", "arithmetic": {"terms": [2], "largest": 9, "count": 30}},
        "prompt": {"template": "frame", "frame": "1+1=2\n{problem}\n", "instruction": None},
        "sampling": {"max_tokens": 7, "temperature": 0.6, "top_k": 5, "stop": ["!"]},
    }
    run_file.write_text(json.dumps(sections))
    ask = partial(read_task_prompts, data_dir=None, tokenizer=tokenizer, samples=2, max_tokens=None)
    found = ask(str(run_file), count=5, seed=0)
    assert len({prompt.text for prompt in found.prompts}) == 5
    assert all(re.fullmatch(r"1\+1=2\n\d[+-]\d=\?\n", prompt.text) for prompt in found.prompts)
    assert found.sampling == SamplingConfig(n=2, max_tokens=7, temperature=1.0, stop=("!",))
    assert ask(str(run_file), count=5, seed=0) == ask(str(tmp_path), count=5, seed=0) == found
    assert ask(str(run_file), count=5, seed=1).prompts != found.prompts
    assert len(ask(str(run_file), count=99, seed=0).prompts) == 30
    assert ask("held_out", count=3, seed=0).sampling.max_tokens == 256
    run_file.write_text(json.dumps({**sections, "data": {**sections["data"], "max_prompt_tokens": 11}}))
    with pytest.raises(ValueError, match=r"over data.max_prompt_tokens \(11\)"):
        ask(str(run_file), count=5, seed=0)
    run_file.write_text(json.dumps({"seed": 0, "data": {"source": "arithmetic"}}))
    with pytest.raises(ValueError, match="no prompt, sampling"):
        ask(str(run_file), count=5, seed=0)


@dataclass
class Lasting:
    """The session's engine, which a command must not close, with adapters under the names that it is given."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def close(self) -> None:
        pass


@pytest.mark.engine
def test_the_command_from_adapter_to_table(vllm_engine: Any, policies: Policies, harness: Any, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks")
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{n}+4=?", "answer": str(n + 4)}) + "\n" for n in range(3, 7)))
    options = ForgettingOptions(
        model="embedded",
        adapters=(f"moved={policies.moved_ref.path}", f"still={policies.still_ref.path}"),
        tasks=("sums",),
        task_dir=tmp_path / "tasks",
        prompts=str(problems),
        samples=3,
        max_tokens=16,
        output=tmp_path / "out" / "forgetting.json",
    )
    settings = []

    def start(chosen: EngineSettings) -> Any:
        settings.append(chosen)
        return Lasting(vllm_engine)

    console = Console(record=True, width=200)
    run(options, console, start)
    (chosen,) = settings
    assert (chosen.dtype, chosen.lora_rank, chosen.max_model_len) == ("float32", 2, 256)
    report = json.loads(options.output.read_text())
    base, moved, still = report["policies"]
    assert [one["label"] for one in report["policies"]] == ["base", "moved-v000000", "still-v000000"]
    assert "change" not in base["mean"]
    assert base["divergence"] is None
    assert moved["divergence"]["kl_k3"] > 0.01
    assert abs(still["divergence"]["kl"]) < LOGPROB_NATS
    assert (still["divergence"]["prompts"], still["divergence"]["completions"]) == (4, 12)
    assert still["tasks"]["sums"]["change"] == 0
    assert report["tasks"]["sums"]["documents"] == 5
    table = options.output.with_suffix(".md").read_text()
    assert table.startswith("|  | sums (acc_norm) | mean | change | KL(base‖policy), nats per token (95 %) |")
    assert f"{100 * moved['tasks']['sums']['accuracy']:.1f} ± " in table
    assert "moved-v000000" in console.export_text()
    with pytest.raises(ValueError, match="--overwrite"):
        run(options, console, start)
    with pytest.raises(ValueError, match=r"of 256 tokens"):
        run(replace(options, output=tmp_path / "x.json", max_tokens=300), console, start)


def test_what_cannot_be_measured_is_reported_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(settings: EngineSettings) -> Any:
        raise AssertionError("started")

    (tmp_path / "file").touch()
    options = ForgettingOptions(model="embedded", tasks=("sums",), output=tmp_path / "x.json")
    for changed, message in (
        ({"tasks": ()}, "nothing to measure"),
        ({"adapters": (str(tmp_path),)}, "never published"),
        ({"prompts": "gsm9k"}, "--prompts: no suite 'gsm9k'"),
        ({"samples": 8}, "--samples is 8, and has no effect: without --prompts no KL is measured"),
        ({"max_tokens": 512}, "--max-tokens is 512, and has no effect"),
        ({"tasks": (), "prompts": "held_out", "limit": 9}, "--limit is 9, and has no effect: --tasks is empty"),
        ({"output": tmp_path / "file" / "x.json"}, "--output: .* is not a directory"),
    ):
        with pytest.raises(ValueError, match=message):
            run(replace(options, **changed), Console(quiet=True), never)
    monkeypatch.delitem(sys.modules, "evals.forgetting.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ValueError, match=r"rl_engine\[forgetting\]"):
        run(options, Console(quiet=True), never)


def test_only_a_library_without_the_hub_is_told_of_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk was told of the hub, too."""
    arguments = ["--model", "embedded", "--tasks", "", "--prompts", "held_out", "--output", str(tmp_path / "x.json")]
    unreached, full = OSError("cannot reach it"), OSError(errno.ENOSPC, "No space left on device")
    for error, advised in ((unreached, True), (full, False)):

        def fail(_: ForgettingOptions, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr("evals.forgetting.__main__.start", fail)
        ended = CliRunner().invoke(app, arguments)
        assert (ended.exit_code, "without the hub" in ended.stderr) == (1, advised), ended.output


def test_adapters_of_one_name_and_of_two_kinds_are_refused(tmp_path: Path) -> None:
    def publish(name: str, rank: int) -> str:
        def write(directory: Path) -> None:
            (directory / "weights").write_text(name)

        return str(AdapterStore(tmp_path / name, name="policy").publish(3, write, {"rank": rank}).path)

    one, two, whole = publish("a", 1), publish("b", 4), publish("c", 0)
    assert [ref.key for ref in find_adapters([one, f"other={two}"], Console(quiet=True))] == [
        "policy-v000003",
        "other-v000003",
    ]
    with pytest.raises(AdapterError, match="not all different"):
        find_adapters([one, two], Console(quiet=True))
    with pytest.raises(AdapterError, match="whole models"):
        find_adapters([one, f"full={whole}"], Console(quiet=True))


def test_of_a_run_the_best_version_is_measured_and_named(tmp_path: Path) -> None:
    store, console = AdapterStore(tmp_path / "run" / "adapters"), Console(record=True, width=300)
    for version in (1, 2):
        store.publish(version, lambda directory: None, {"rank": 1})
    store.point("best", 1)
    (ref,) = find_adapters([f"mine={tmp_path / 'run'}"], console)
    assert (ref.key, ref.path) == ("mine-v000001", store.path_of(1))
    assert "using its best version, v000001" in console.export_text()
