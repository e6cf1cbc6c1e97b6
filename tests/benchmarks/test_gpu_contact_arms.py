"""The learner and decoding arms that the first contact with a GPU measures."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.gpu_contact import learner, step
from benchmarks.gpu_contact.figures import FILE, noted
from benchmarks.gpu_contact.page import page
from benchmarks.gpu_contact.running import ROOT
from benchmarks.gpu_contact.sizes import ADAPTER, IDLE, SIZES
from benchmarks.gpu_contact.stages import stages
from benchmarks.gpu_contact.weights import NEVER, write_checkpoint, write_shape
from rl_engine.config import load_config
from rl_engine.learner.batching import collate
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.policy import base_model
from rl_engine.policy.compiled_layers import NotCompiledWarning
from tests.helpers import forked
from tests.helpers.contact_figures import CPU, outcome


@pytest.mark.parametrize("arm", learner.ARMS)
def test_every_arm_gets_settings_that_exist(arm: str) -> None:
    load_config("quickstart.yaml", [*learner.ARMS[arm].settings])
    assert learner.ARMS[arm].mask in learner.MASKS


def test_the_rows_of_a_group_have_one_prompt() -> None:
    own, group = (learner.samples_of(CPU, 256, group=group) for group in (False, True))
    assert [sample.num_tokens for sample in group] == [sample.num_tokens for sample in own]
    assert {sample.prompt_ids for sample in group} == {group[0].prompt_ids}
    assert len(learner.samples_of(SIZES["card"], 256, group=True)[0].prompt_ids) == 256
    assert learner.ARMS["rank 1, one long prompt"].shares_learner(learner.ARMS["rank 1"])
    assert not learner.ARMS["rank 1, one long prompt, shared"].shares_learner(learner.ARMS["rank 1"])


def test_an_arm_that_the_memory_does_not_hold_leaves_the_others(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    measure, build, built = learner.measure, learner.build, []

    def short(arm: learner.Arm, *others: Any) -> dict[str, Any]:
        if "lora.rank=32" in arm.settings:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it")
        return measure(arm, *others)

    def counted(arm: learner.Arm, *others: Any) -> Any:
        built.append(arm)
        return build(arm, *others)

    monkeypatch.setattr(learner, "measure", short)
    monkeypatch.setattr(learner, "build", counted)
    arms = {"a": learner.Arm(settings=("lora.rank=32",)), "b": learner.Arm(times=2), "c": learner.Arm()}
    monkeypatch.setattr(learner, "ARMS", arms | {"d": learner.Arm(compiled=False), "e": learner.Arm(shape=1)})
    learner.main("cpu")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(row["kind"], row["arm"]) for row in rows] == [("left out", "a"), *(("learner", arm) for arm in "bcde")]
    assert [row["tokens"] for row in rows[1:]] == [2 * (32 + 24), *[32 + 24] * 3]
    assert [row["model"] for row in rows[1:]] == ["tiny"] * 3 + ["tiny-untied"]
    # Two arms that differ only in their rows share a learner.
    assert [arm for arm in built if arm == arms["c"]] == []
    assert len(built) == 4
    text = page([outcome("learner", *rows)], "cpu")
    assert "- a: left out, CUDA out of memory. Tried to allocate 2 GiB." in text


def test_random_weights_never_end_and_every_token_has_a_text(tmp_path: Path) -> None:
    write_shape(tmp_path, CPU.shapes["tiny"], "float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    vocabulary = CPU.shapes["tiny"]["vocab_size"]
    assert tokenizer.convert_tokens_to_ids(NEVER) == tokenizer.eos_token_id == vocabulary == len(tokenizer) - 1
    texts = [tokenizer.decode([number]) for number in range(3, vocabulary)]
    assert len(set(texts)) == vocabulary - 3
    assert "" not in texts
    # transformers reads this family's tokenizer in its own way, and loses the template's newline.
    assert tokenizer.decode(tokenizer.encode("12+3-4=?")) == "12+3-4=?"


@pytest.fixture
def drawn(tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the tiny shape, without weights: the learner draws random ones for the length of the test."""
    monkeypatch.setattr(base_model, "load_weights", base_model.load_weights)
    write_shape(tmp_path / "tiny", CPU.shapes["tiny"], "float32")
    return tmp_path / "tiny"


def test_right_padded_rows_need_no_mask(drawn: Path) -> None:
    """Without a mask, right-padded rows give the same results as with one."""
    started = learner.start_learner(drawn, CPU, ["learner.layout=padded"])
    batch = collate(learner.samples_of(CPU, 256), 0, "padded")
    with torch.no_grad():
        logprobs = [started.deepspeed_engine(learner.masked(batch, mask))[0] for mask in learner.MASKS]
    for other in logprobs[1:]:
        torch.testing.assert_close(logprobs[0], other, rtol=0, atol=1e-5)
    assert learner.masked(batch, "none").attention_mask_BT is None
    assert learner.masked(batch, "given").attention_mask_BT.sum() == sum(
        s.num_tokens for s in learner.samples_of(CPU, 256)
    )


def test_an_arm_of_the_learner_is_measured(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn.parent / "figures.jsonl"
    monkeypatch.setenv(FILE, str(figures))
    monkeypatch.setattr(learner, "ARMS", {"rank 4": learner.Arm(settings=("lora.rank=4", "learner.layout=padded"))})
    learner.main("cpu")
    (row,) = noted(figures)
    assert (row["model"], row["arm"], row["layout"]) == ("tiny", "rank 4", "padded")
    assert row["tokens"] == 32 + 24
    assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"])
    assert row["peak_gib"] is None
    # Calculated by hand: multiply-adds per token in the linear layers of both blocks, and in the output embedding.
    width, wide = 64, 128
    linear = 2 * (2 * width * width + 2 * width * width // 2 + 3 * width * wide)
    predicted = row["tokens"] - 2 * learner.PROMPT
    frozen = 2 * 2 * (row["tokens"] * linear + predicted * width * 256)
    # The adapter and attention come on top.
    assert frozen < row["tflops"] * 1e12 * row["seconds"] < 1.3 * frozen


def test_an_arm_that_is_not_what_it_is_called_is_no_figure(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Layers that were not compiled are not reported as compiled, and a pass that leaves no gradient is not reported as
    a step's pass."""

    def stay(*_: Any) -> None:
        warnings.warn(
            "torch.compile does not work here: no; the learner runs uncompiled, and slower",
            NotCompiledWarning,
            stacklevel=2,
        )

    monkeypatch.setattr(Learner, "is_worth_compiling", True)
    monkeypatch.setattr(Learner, "compile_layers", stay)
    monkeypatch.setattr(learner, "ARMS", {"a": learner.Arm(), "b": learner.Arm(compiled=False)})
    learner.main("cpu")
    monkeypatch.setattr(
        "benchmarks.learner.objective", lambda _, batch, logprob, *__: SimpleNamespace(loss=0 * logprob.sum())
    )
    learner.main("cpu")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row.get("why", row["kind"]) for row in rows] == [
        "torch.compile does not work here: no; the learner runs uncompiled, and slower",
        "learner",
        "torch.compile does not work here: no; the learner runs uncompiled, and slower",
        "the passes leave a gradient of 0",
    ]


def test_a_steps_engine_is_asked_with_its_adapter_and_without(tmp_path: Path) -> None:
    """Runs the stage's command in a process that has already loaded its libraries."""
    (stage,) = [one for one in stages(CPU, tmp_path, None) if one.name == "step"]
    settings = [word for word in stage.command if "=" in word]
    checkpoint = tmp_path / "tiny"
    written = write_checkpoint(checkpoint, CPU, "tiny")
    assert written["parameters"] * 4 == pytest.approx(written["gib"] * 2**30, rel=0.01)
    figures = tmp_path / "figures.jsonl"
    code, output = forked.train(
        ROOT,
        f"model.name={checkpoint}",
        *settings,
        environment={FILE: str(figures), "PYTHONPATH": str(ROOT)},
        prepare=partial(step.decode_at_the_end, CPU),
    )
    assert code == 0, output
    # Each figure is noted as it is measured, so a stage that is cut off keeps its rounds.
    idle, adapter, *again, looked_at, _ = (rows := noted(figures))[: 2 * step.ROUNDS + 2]
    host = rows[2 * step.ROUNDS + 1 :]
    assert [row["arm"] for row in again] == [IDLE, ADAPTER] * (step.ROUNDS - 1)
    assert [(row["arm"], row["sequences"], row["tokens"]) for row in (idle, adapter)] == [
        (IDLE, 4, 16),
        (ADAPTER, 4, 16),
    ]
    assert all(row["tokens_per_s"] > 0 for row in (idle, adapter))
    assert (looked_at["kind"], looked_at["tokens"], looked_at["kernel_s"]) == ("decoding step", 16, None)
    assert [row["kind"] for row in host] == ["host"] * step.FUNCTIONS
    assert sum(row["seconds"] for row in host) < host[0]["whole_s"]
    text = page([outcome("step", idle, adapter, looked_at | {"seconds": 0.16, "kernel_s": 0.04}, *host)], "card")
    assert "A step of decoding with the adapter: 10.0 ms, the card at work 2.5 of them." in text
    assert f"| `{host[0]['function']}`, {host[0]['where']} | {host[0]['calls']} |" in text
    (first, later) = stage.read()
    assert first["kind"] == "step"
    assert later["sampling_tokens_per_s"] > 0
    # The engine is built for the size that the run asks for.
    assert load_config("quickstart.yaml", settings).rollout.max_num_seqs == 4


def test_rounds_take_turns_and_count_whole_completions_alone(tmp_path: Path) -> None:
    write_shape(tmp_path, CPU.shapes["tiny"], "float32")
    asked: list[tuple[Any, int]] = []

    class Engine:
        length = CPU.tokens

        def generate(self, prompts: list[Any], sampling: Any, adapter: Any, seeds: list[str]) -> list[Any]:
            asked.append((adapter, sampling.max_tokens))
            completion = SimpleNamespace(token_ids=range(self.length))
            return [SimpleNamespace(completions=[completion] * sampling.n) for _ in prompts]

    sampler = SimpleNamespace(engine=Engine())
    config = SimpleNamespace(model=SimpleNamespace(name=str(tmp_path)))
    run = SimpleNamespace(sampler=sampler, config=config, adapter="newest")
    step.decode(run, CPU)
    # Two short rounds at the end are profiled.
    assert [adapter for adapter, _ in asked] == [None, None, "newest", None, "newest", "newest", "newest"]
    sampler.engine.length -= 1
    with pytest.raises(SystemExit, match="completions ended before their full length"):
        step.decode(run, CPU)
