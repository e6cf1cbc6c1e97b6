"""Devices, their speed, and what the command prints of a plan."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from typer.testing import CliRunner

from rl_engine.config.file import ConfigError
from rl_engine.plan.__main__ import app
from rl_engine.plan.devices import on_gpus, on_this_cpu
from rl_engine.plan.forecast import forecast
from rl_engine.plan.sizes import Devices, Widths, Workload
from rl_engine.plan.step_time import DataSheet, GpuSampler, Throughput, measured
from rl_engine.policy.base_model import load_meta_model
from rl_engine.run.memory import GIB
from tests.helpers.planned import deepmath, planned

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("text", "parsed"), [("8x80", (8, 80.0)), ("1x24GiB", (1, 24.0)), ("64X141.5", (64, 141.5))])
def test_devices_are_a_count_and_a_memory(text: str, parsed: tuple[int, float]) -> None:
    devices = Devices.parse(text)
    assert (devices.count, devices.gib) == parsed


@pytest.mark.parametrize("text", ["80", "x80", "0x80", "8x-1", "8xinf", "8xnan", "eightx80"])
def test_other_devices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--devices"):
        Devices.parse(text)


def test_a_given_speed_is_waited_for_on_the_busiest_device(meta_model: nn.Module) -> None:
    work = Workload.of(deepmath())
    speed = Throughput(sampling=1000.0, learning=2000.0, other_s=3.0, source="given")
    tokens = 32 * 16 * 8192
    for count, groups, completions in ((1, 32, 512), (8, 4, 64), (20, 2, 26), (64, 1, 8)):
        time = speed.predict(work, Devices(count=count, gib=80))
        assert time.sampling_s == pytest.approx(tokens * groups / 32 / 1000)
        assert time.learning_s == pytest.approx(tokens * completions / 512 / 2000)
        assert time.step_s == pytest.approx(time.sampling_s + time.learning_s + 3)


def test_a_data_sheet_bounds_decoding_by_what_must_be_read(meta_model: nn.Module) -> None:
    made = planned(meta_model, "rollout.memory_fraction=0.6")
    widths = Widths.of(meta_model)
    assert widths.kv_bytes(2) == 2 * 36 * 8 * 128 * 2
    sampler = GpuSampler.of(made.config, made.total, 80.0)
    weights = made.total * 2
    assert sampler.kv_cache == pytest.approx(48 - weights / GIB)
    held = int((48 * GIB - weights) / (9216 * 147_456))
    assert sampler.concurrent_sequences(made.config, widths, made.work) == held == 25
    card = DataSheet(tflops=989, tb_per_s=3.35, mfu=0.4)
    fit = on_gpus(made, Devices(count=8, gib=80.0), card)
    assert (fit.groups, fit.idle, fit.concurrent_sequences, fit.refusals) == (4, 0, 25, ())
    token_s = (weights + 25 * (1024 + 4096) * 147_456) / 3.35e12
    assert fit.time is not None
    assert fit.time.sampling_s == pytest.approx(token_s * 8192 * 64 / 25)
    learning = made.lora.learning + made.lora.recomputed
    assert fit.time.learning_s == pytest.approx(learning / 8 / (0.4 * 989e12))
    # With memory bandwidth to spare and a slow processor, the multiply-adds are the bottleneck.
    slow = on_gpus(made, Devices(count=8, gib=80.0), DataSheet(tflops=1, tb_per_s=1000, mfu=1)).time
    assert slow is not None
    assert slow.sampling_s == pytest.approx(made.lora.sampling / 8 / 1e12)


def test_a_sampler_on_several_cards_divides_what_it_holds(meta_model: nn.Module) -> None:
    """For one whose weights do not fit on one of its cards, no room for a sequence was found."""
    halves, card = "rollout.tensor_parallel_size=2", DataSheet(tflops=989, tb_per_s=3.35, mfu=0.4)
    made = planned(meta_model, "rollout.placement=ray", halves)
    fit = on_gpus(made, Devices(count=1, gib=12.0), None)
    assert fit.sampler is not None
    assert (fit.sampler.weights, fit.sampler.kv_cache) == pytest.approx((made.total / GIB, 10.8 - made.total / GIB))
    assert fit.concurrent_sequences == int(2 * fit.sampler.kv_cache * GIB / (9216 * 147_456)) == 5
    assert not any("KV cache" in why for why in fit.refusals)
    assert on_gpus(made, Devices(count=1, gib=1e300), None).concurrent_sequences == 512
    # Two cards read and compute twice as fast as one that is twice as large.
    whole = planned(meta_model, "rollout.placement=ray")
    both = [on_gpus(plan, Devices(count=1, gib=gib), card).time for plan, gib in ((made, 40.0), (whole, 80.0))]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0].sampling_s == pytest.approx(both[1].sampling_s / 2)


def test_cards_without_a_group_or_without_room_are_reported(meta_model: nn.Module) -> None:
    made = planned(meta_model, "rollout.memory_fraction=0.45")
    many = on_gpus(made, Devices(count=64, gib=80.0), None)
    assert (many.groups, many.idle, many.time) == (1, 32, None)
    small = on_gpus(made, Devices(count=1, gib=24.0), DataSheet(tflops=100, tb_per_s=1, mfu=0.4))
    assert small.time is None
    memory, cache = small.refusals
    assert "24.0 GiB are available" in memory
    assert "one sequence needs 1.27 GiB of KV cache, and the sampler has " in cache
    assert "raise rollout.memory_fraction, which is 0.45" in cache


def test_the_data_sheet_of_a_card_is_no_use_on_a_cpu(make_config: Any) -> None:
    made = forecast(make_config(), load_meta_model(make_config().model), device_type="cpu")
    with pytest.raises(ConfigError, match="--devices"):
        on_this_cpu(made, DataSheet(tflops=1, tb_per_s=1, mfu=1))
    fit = on_this_cpu(made, Throughput(sampling=1000, learning=500, source="given"))
    assert fit.time is not None
    assert fit.time.step_s == pytest.approx(64 * 8 * 72 * (1 / 1000 + 1 / 500))


@pytest.fixture
def finished(tmp_path: Path, make_config: Any) -> Path:
    """A run of three steps, the first of which was slow."""
    run = tmp_path / "finished"
    run.mkdir()
    config = make_config()
    (run / "config.yaml").write_text(config.to_yaml())
    lines: list[dict[str, float]] = [{"step": 0, "eval/held_out/avg": 0.5}]
    for step, rollout_s in ((1, 50.0), (2, 2.0), (3, 4.0)):
        times = {"time/rollout_s": rollout_s, "time/learn_s": 2.0, "time/grade_s": 0.5, "time/sync_s": 0.25}
        lines.append({"step": step, "completion/tokens_mean": 20.0, "time/step_s": rollout_s + 2.75, **times})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_run_of_ones_own_measures_the_speed(finished: Path, make_config: Any) -> None:
    config = make_config("sampling.max_tokens=60", "train.problems_per_step=32")
    speed = measured(finished, config, 2)
    # 512 completions of 20 tokens took 2 and 4 seconds on two devices.
    assert speed.sampling == pytest.approx(2 * 10240 / 6 / 2)
    assert speed.learning == pytest.approx(10240 / 2 / 2)
    assert (speed.other_s, speed.completion_tokens) == (0.75, 20)
    assert measured(finished, make_config("sampling.max_tokens=9"), 2).completion_tokens == 9


def test_the_same_run_again_is_predicted_to_take_as_long(finished: Path, make_config: Any) -> None:
    speed = measured(finished, make_config(), 1)
    time = speed.predict(Workload.of(make_config(), completion_tokens=20), Devices(count=1, gib=1))
    assert time.step_s == pytest.approx((4.75 + 6.75) / 2)


def test_another_models_run_measures_nothing_here(finished: Path, tmp_path: Path, make_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"method lora, and the plan is for full"):
        measured(finished, make_config("method=full"), 1)
    values = yaml.safe_load((finished / "config.yaml").read_text())
    for text, told in (("a: [", "config.yaml is damaged"), (yaml.safe_dump({**values, "new": 1}), "of this version")):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "metrics.jsonl").touch()
        (tmp_path / "other" / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=rf"^[^\n]*{told}[^\n]*$"):
            measured(tmp_path / "other", make_config(), 1)
    ahead = make_config("rollout.placement=ray", "rollout.max_staleness=1")
    (finished / "config.yaml").write_text(ahead.to_yaml())
    with pytest.raises(ConfigError, match=r"max_staleness 1, waiting .*, and the plan is for 0$"):
        measured(finished, make_config(), 1)
    assert measured(finished, ahead, 1).other_s == 0.75
    (finished / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ConfigError, match="has not finished two steps"):
        measured(finished, ahead, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, None])
@pytest.mark.parametrize("name", ["time/rollout_s", "completion/tokens_mean"])
def test_no_speed_follows_from_no_duration(name: str, value: float | None, finished: Path, make_config: Any) -> None:
    path = finished / "metrics.jsonl"
    lines = [json.loads(line) | {name: value} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=rf"^--from: .*/metrics\.jsonl has {name} \S+ in .*speed follows"):
        measured(finished, make_config(), 1)


def plan(*arguments: str | Path) -> tuple[int, str]:
    # The command disables the hub through the environment, which other tests must not see.
    done = CliRunner(env={"HF_HUB_OFFLINE": "1"}).invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stderr if done.exit_code else done.stdout


def test_a_plan_that_nobody_could_read_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert app(["--config", "quickstart", "--devices", "1x80"], standalone_mode=False) == 1


def test_the_command_on_this_machine_with_a_measured_speed(finished: Path) -> None:
    code, output = plan("--config", "quickstart", "--from", finished, "--supervised-tokens", "1000000")
    assert code == 0, output
    rows = {match[1]: match[2] for match in re.finditer(r"^(\S.*?) {2,}(\S.*?) *$", output, re.MULTILINE)}
    assert rows["a step, s"] == "5.75"
    assert rows["supervised"].endswith("995,460 bits: 3410.98%; rank 35 holds it")
    assert rows["parameters"].startswith("14,592 of 1,775,744 trained")
    assert "2 steps on 1 device: 3,413 completion tokens per second sampled and 5,120 learned from" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens-per-s", "1", "2", "--card", "1", "2"), "give one of"),
        (("--tokens-per-s", "1", "0"), "above 0"),
        (("--tokens-per-s", "nan", "1"), "above 0"),
        (("--card", "989", "inf", "--devices", "1x80"), "above 0"),
        (("--completion-tokens", "73"), "--completion-tokens is 73, a mean above the longest, sampling.max_tokens 72"),
        (("--prompt-tokens", "999"), "--prompt-tokens is 999, a mean above the longest, data.max_prompt_tokens"),
        (("--devices", "80"), "COUNTxGIB"),
        (("lora.rnak=2",), "did you mean lora.rank"),
        (("model.name=./absent",), "not a model directory"),
    ],
)
def test_what_cannot_be_planned_is_reported_plainly(arguments: tuple[str, ...], message: str) -> None:
    code, output = plan("--config", "quickstart", *arguments)
    assert (code, message in output) == (2, True), output


def test_the_page_is_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/plan.md shows the command and its output. It is run again here as a reader would, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "plan.md").read_text().partition("## Qwen3-8B-Base")[2]
    block = re.search(r"^    python -m rl_engine\.plan (.*?)\n\n(    .*?)\n\n(?=\S)", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    code, output = plan(*block[1].replace("\\\n", " ").split())
    assert code == 0, output
    assert output.split() == block[2].split()
