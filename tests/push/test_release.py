"""What a release holds, what its card says, and that the code on the card does what it says."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from typer.testing import CliRunner

from evals.asking.trained_with import chat_template_of, trained_with
from rl_engine.config import Config, load_config
from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rl_engine.merge.weights import TIED_WHEN_SERVED, _untie, merge
from rl_engine.policy.lora.adapter import LoraPolicy
from rl_engine.push.__main__ import app
from rl_engine.push.model_card import Licence, Release
from rl_engine.push.recipe import recipe_rows
from rl_engine.push.release import files_of, make_release
from rl_engine.report.page import write_report
from rl_engine.run.trained import read_trained
from rollout.adapters import AdapterError, AdapterStore, read_manifest, sha256_of, write_manifest
from rollout.models import EMBEDDED_DIR
from rollout.prompts.renderer import Renderer
from rollout.types import Problem
from tests.helpers.families import tiny_wrapper
from tests.helpers.hub_standin import Hub, standing_in, use
from tests.helpers.precision import LOGPROB_NATS, assert_same_sums
from tests.helpers.run_directories import CURVES, LAST, report, trained_run

REPO = "ada/sums"
FRAME = 'A "question" of {problem}\n\nSecond line \\boxed\nAnswer: '


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoraPolicy]:
    """A run with every kind of path in its configuration, and its model as the learner holds it."""
    root = tmp_path_factory.mktemp("made")
    paths = [
        "data.source=jsonl",
        f"data.path={root}/data/train problems.jsonl",
        f"eval.data_dir={root}/suites",
        f"eval.suites=[held_out,math500,{root}/suites/mine.jsonl]",
        "sampling.stop=[/no/path]",
        "rewards.function=some.module:name",
        f"rewards.function_arguments={{table: {root}/table.csv, nested: [{{more: ~/x.bin}}]}}",
    ]
    run = root / "run"
    return run, trained_run(run, "lora.rank=2", *paths)


@pytest.fixture
def run(trained: tuple[Path, LoraPolicy], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run", symlinks=True))


def release(
    run: Path, folder: Path, base_model: str | None = None, merged: str | None = None, *, completions: bool = False
) -> Path:
    adapter = read_trained(run / "adapters" / "latest", base_model)
    make_release(
        Release(
            adapter=adapter,
            repo=REPO,
            tag=adapter.version,
            licence=Licence(id=None),
            merged=merged,
            completions=completions,
        ),
        folder,
    )
    return folder


def configure(run: Path, *overrides: str) -> Config:
    """Replace the run's configuration by another."""
    config = load_config(str(run / "config.yaml"), overrides)
    (run / "config.yaml").write_text(config.to_yaml())
    return config


def table(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_a_release_holds_the_run_and_not_a_path_of_the_machine(run: Path, tmp_path: Path) -> None:
    folder = release(run, tmp_path / "folder")
    assert [str(path) for path in files_of(folder)] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "curves.png",
        "manifest.json",
        "run/config.yaml",
        "run/evals/held_out-policy-v000000.json",
        "run/evals/held_out-policy-v000003.json",
        "run/metrics.jsonl",
        "run/report.html",
    ]
    source = run / "adapters" / "v000003"
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (source / weights).read_bytes()
    assert (folder / "run/metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert (folder / "curves.png").read_bytes() == CURVES
    for path in files_of(folder):
        text = (folder / path).read_bytes().decode(errors="replace")
        assert not re.findall(rf"{re.escape(str(tmp_path.parent.parent))}|{Path.home()}/|{Path.cwd()}|/tmp/", text), (
            path
        )
    assert "policy-v000003" in (folder / "run/report.html").read_text()


PROBLEM, ANSWER, COMPLETION = "what is the colour of the heron", "ANSWER-OF-IT", "I think it is grey"


def with_rollouts(run: Path) -> None:
    """A step whose problem, reference and completion are easy to find again."""
    row = {"step": 1, "problem_id": "heron-17", "problem": PROBLEM, "reference": ANSWER, "prompt": f"{PROBLEM}?"}
    row |= {"completion": COMPLETION, "extracted": None, "verdict": "correct", "reward": 1.0, "advantage": 0.5}
    row |= {"adapter": "policy-v000000", "completion_tokens": 4, "finish_reason": "stop"}
    (run / "rollouts").mkdir()
    with gzip.open(run / "rollouts" / "step000001.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    write_report([run], run / "report.html")


@pytest.mark.parametrize("asked", [False, True])
def test_training_problems_are_published_only_when_asked_for(run: Path, tmp_path: Path, asked: bool) -> None:
    with_rollouts(run)
    assert PROBLEM in (run / "report.html").read_text()
    folder = release(run, tmp_path / "folder", completions=asked)
    holders = [
        str(path)
        for path in files_of(folder)
        for text in [(folder / path).read_bytes().decode(errors="replace")]
        if any(words in text for words in (PROBLEM, ANSWER, COMPLETION, "heron-17"))
    ]
    assert holders == (["run/report.html"] if asked else [])
    page = (folder / "run/report.html").read_text()
    assert "<dt>Machine</dt>" in page
    assert "<dt>Command</dt>" not in page  # it may name any path
    assert not re.findall(rf"{tmp_path}|{Path.home()}/|{Path.cwd()}", (folder / "run/report.html").read_text())


def test_the_released_configuration_differs_in_its_paths_alone(run: Path, tmp_path: Path) -> None:
    """It still runs."""
    folder = release(run, tmp_path / "folder")
    before = yaml.safe_load((run / "config.yaml").read_text())
    after = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert Config.model_validate(after).lora.rank == 2
    assert after["sampling"]["stop"] == ["/no/path"]  # what a model writes is not one, whatever it looks like
    assert after["data"].pop("path") == "train problems.jsonl"
    assert after["eval"].pop("data_dir") == "suites"
    assert after["eval"].pop("suites") == ["held_out", "math500", "mine.jsonl"]
    assert after["rewards"].pop("function_arguments") == {"table": "table.csv", "nested": [{"more": "x.bin"}]}
    assert after.pop("output_dir") == "run"
    for section, key in (("data", "path"), ("eval", "data_dir"), ("eval", "suites"), ("rewards", "function_arguments")):
        before[section].pop(key)
    before.pop("output_dir")
    assert after == before


def test_the_manifest_vouches_for_the_release(run: Path, tmp_path: Path) -> None:
    folder = release(run, tmp_path / "folder")
    manifest = read_manifest(folder)
    source = read_manifest(run / "adapters" / "v000003")
    assert manifest["files"]["adapter_model.safetensors"] == source["files"]["adapter_model.safetensors"]
    assert (manifest["version"], manifest["base_model"]) == (LAST, "embedded")
    # It can be pushed again, with what is known of it there.
    again = read_trained(folder, None)
    assert (again.version, again.base.name, again.run) == ("v000003", "embedded", None)


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, second = release(run, tmp_path / "a"), release(run, tmp_path / "b")
    assert files_of(first) == files_of(second)
    for path in files_of(first):
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_a_directory_that_is_no_release_is_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a release"):
        release(run, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    folder = release(run, tmp_path / "folder")
    (folder / "run/evals/old.json").write_text("{}")
    release(run, folder)
    assert not (folder / "run/evals/old.json").exists()


def test_a_release_that_was_worked_on_is_kept_aside(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run, an hour on the model card, and then the push."""
    folder = release(run, tmp_path / "folder")
    release(run, folder)
    assert capsys.readouterr().out == ""
    (folder / "README.md").write_text("an hour of work")
    (folder / "notes.txt").write_text("mine")
    release(run, folder)
    kept = tmp_path / "folder.old-1"
    assert f"has been edited: it is kept in {kept}" in capsys.readouterr().out
    assert ((kept / "README.md").read_text(), (kept / "notes.txt").read_text()) == ("an hour of work", "mine")
    assert not (folder / "notes.txt").exists()


def test_a_whole_model_is_no_adapter(run: Path) -> None:
    manifest = run / "adapters/v000003/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "kind": "full"}))
    with pytest.raises(AdapterError, match="no adapter, as is needed here"):
        read_trained(manifest.parent, None)


# What the card says.


def test_the_hub_reads_the_scores_with_their_intervals(run: Path, tmp_path: Path) -> None:
    report("policy-v000003", 0.4444, (0.4, 0.49), suite="gsm8k").write(run / "evals")
    card = ModelCard.load(release(run, tmp_path / "folder") / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model is None
    gsm8k, held_out = card.data.eval_results or []
    assert (held_out.dataset_name, held_out.metric_value, held_out.metric_name) == ("held_out", 0.75, "avg@1")
    assert held_out.metric_args is not None
    assert held_out.metric_args["interval_95"] == [0.69, 0.8]
    assert (held_out.metric_args["problems"], held_out.metric_args["max_tokens"]) == (200, 72)
    assert (gsm8k.dataset_type, gsm8k.dataset_config, gsm8k.dataset_split) == ("openai/gsm8k", "main", "test")
    row = "| held_out (version 1) | avg@1 | 25.0 % (20.0–31.0) | **75.0 % (69.0–80.0)** | 200 × 1 | 7.5 → 22.5 |"
    assert row in card.text
    # Of gsm8k the base model has no score.
    assert "| gsm8k (version 1) | avg@1 | not measured | **44.4 % (40.0–49.0)** |" in card.text


def test_a_base_score_in_another_setting_is_no_comparison(run: Path, tmp_path: Path) -> None:
    path = run / "evals/held_out-policy-v000000.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.6}))
    assert "| held_out (version 1) | avg@1 | not measured | **75.0 %" in table(release(run, tmp_path / "folder"))


def test_version_zero_of_a_continued_adapter_is_no_base_model(run: Path, tmp_path: Path) -> None:
    """It went on from another adapter, whose update it has."""
    configure(run, "lora.start_from=/srv/adapters/first")
    folder = release(run, tmp_path / "folder")
    assert "| held_out (version 1) | avg@1 | not measured | **75.0 %" in table(folder)
    assert "| start | another adapter (`lora.start_from`) |" in table(folder)
    assert not [path for path in files_of(folder) if b"/srv" in (folder / path).read_bytes()]


def test_the_highest_of_several_scores_is_said_to_be_one(run: Path, tmp_path: Path) -> None:
    words = "It scored highest among the evaluated versions"
    assert words not in table(release(run, tmp_path / "folder"))
    AdapterStore(run / "adapters").point("best", 0)
    assert words not in table(release(run, tmp_path / "folder"))
    AdapterStore(run / "adapters").point("best", LAST)
    assert words in table(release(run, tmp_path / "folder"))


def test_what_evals_wrote_counts_for_the_version_it_measured(run: Path, tmp_path: Path) -> None:
    """By the digest of its manifest, whatever the row is called; and against the base model of the same file."""

    def row(adapter: str, sha256: str | None, avg: float) -> dict[str, Any]:
        made = asdict(report(adapter, avg, (avg - 0.1, avg + 0.1), suite="aime2024"))
        estimates = {"16": {"value": avg + 0.2, "interval": [avg, avg + 0.3]}}
        return {**made, "adapter_sha256": sha256, "samples": 16, "pass_at": estimates, "maj_at": estimates}

    mine = sha256_of(run / "adapters/v000003/manifest.json")
    rows = [row("base", None, 0.1), row("mine", mine, 0.4), row("policy-v000003", "f" * 64, 0.6)]
    measured = {"data": {"origin": "/srv/data/aime2024.jsonl"}, "suites": [{"suite": "aime2024", "rows": rows}]}
    (run / "evals" / "aime.json").write_text(json.dumps(measured))
    folder = release(run, tmp_path / "folder")
    rows_of_aime = [line for line in table(folder).splitlines() if line.startswith("| aime2024")]
    assert [line.split(" | ")[1:4] for line in rows_of_aime] == [
        ["avg@16", "10.0 % (0.0–20.0)", "**40.0 % (30.0–50.0)**"],
        ["pass@16", "30.0 % (10.0–40.0)", "**60.0 % (40.0–70.0)**"],
        ["maj@16", "30.0 % (10.0–40.0)", "**60.0 % (40.0–70.0)**"],
    ]
    first, *_ = ModelCard.load(folder / "README.md").data.get("eval_results")
    assert (first.metric_name, first.metric_value, first.dataset_type) == ("avg@16", 0.4, "HuggingFaceH4/aime_2024")
    assert json.loads((folder / "run/evals/aime.json").read_text())["data"] == {"origin": "aime2024.jsonl"}


def test_what_lies_in_a_runs_directory_is_passed_over_or_named(run: Path) -> None:
    """Other people's JSON is no evaluation; what is damaged is told of by its name, in a line."""
    before = read_trained(run / "adapters/latest", None).run
    for name, text in (
        ("list", "[1]"),
        ("mine", '{"suite": "x"}'),
        ("rows", '{"suites": [{"rows": [{}]}]}'),
        ("n", "3"),
    ):
        (run / "evals" / f"{name}.json").write_text(text)
    after = read_trained(run / "adapters/latest", None).run
    assert before is not None
    assert after is not None
    assert after.evaluations == before.evaluations
    for name, text, told in (("evals/torn.json", "{", "is not JSON"), ("config.yaml", "a: [", "is damaged")):
        (run / name).write_text(text)
        result = CliRunner().invoke(app, ["--adapter", str(run), "--repo", REPO, "--dry-run"])
        assert result.exit_code == 2
        assert f"{name} {told}" in result.output
        (run / name).unlink()


def test_the_recipe_is_the_configurations(run: Path, tmp_path: Path) -> None:
    configure(run, "loss.name=ppo_clip", "loss.kl_coef=0.01", "optim.lr=3e-5", "seed=7", "data.source=gsm8k")
    text = table(release(run, tmp_path / "folder"))
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+) \|$", text, re.MULTILINE))
    assert rows["method"] == "LoRA of rank 2, α = 32: W + (α / rank) · B·A"
    assert rows["targets"].endswith("28 matrices, 29,184 trained parameters")  # twice rank 1's
    assert rows["data"] == "gsm8k, from a file"
    assert rows["sampling"] == "64 problems × 8 completions a step, at most 72 tokens, temperature 1"
    assert rows["reward"].startswith("1 for a correct final answer, else 0; a function of its own (weight 1)")
    assert "`ppo_clip` over `group_mean`" in rows["objective"]
    assert "clip_low 0.2, clip_high 0.2, KL to the base model × 0.01 (k3)" in rows["objective"]
    assert rows["optimizer"] == "Adam 0.9/0.95, constant rate 3e-05"
    assert rows["steps"] == "3 of 5, one update each; 1,536 completions"
    assert rows["training time"] == "6 s, the sum of the steps"
    assert rows["KL to the base model"] == "0.03 nats a token at the last step"
    assert rows["seed"] == "7"


def test_a_base_model_of_the_hub_is_named_as_the_hub_does(run: Path, tmp_path: Path) -> None:
    folder = release(run, tmp_path / "folder", base_model="org/base")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "org/base"
    assert 'base = "org/base"' in card.text
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"


def test_a_base_model_from_a_directory_is_named_by_its_last_part(run: Path, tmp_path: Path) -> None:
    rename_base(run, "/srv/models/tiny-qwen", "/srv/models/tiny-qwen")
    folder = release(run, tmp_path / "folder")
    assert ModelCard.load(folder / "README.md").data.base_model is None
    assert 'base = "path/to/tiny-qwen"' in table(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert not [path for path in files_of(folder) if b"/srv" in (folder / path).read_bytes()]


@pytest.mark.parametrize("name", ["models/mine", "./models/mine/", "../here/models/mine"])
def test_no_file_says_where_the_base_model_lay(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path from where the run was started is one of the machine too, and reads like an id of the hub."""
    here = tmp_path / "here"
    shutil.copytree(EMBEDDED_DIR, here / "models" / "mine")
    monkeypatch.chdir(here)
    trained_run(here / "run", f"model.name={name}")
    (here / "run" / "report.html").write_text(f"<p>{name}</p>")
    folder = release(here / "run", tmp_path / "folder", merged="float32")
    assert not [path for path in files_of(folder) if re.search(rb"models/mine|/here", (folder / path).read_bytes())]
    assert yaml.safe_load((folder / "run" / "config.yaml").read_text())["model"]["name"] == "mine"


def test_another_base_model_than_the_runs_is_refused(run: Path) -> None:
    rename_base(run, "org/base", "org/base")
    assert read_trained(run / "adapters/latest", "org/base").base.hub_id == "org/base"
    with pytest.raises(ValueError, match="was trained on 'org/base'"):
        read_trained(run / "adapters/latest", "org/other")


def rename_base(run: Path, name: str, loaded: str) -> None:
    """Publish the last version as if its base model had been another."""
    from rollout.adapters import write_manifest

    directory = run / "adapters/v000003"
    facts = {key: value for key, value in read_manifest(directory).items() if key not in ("files", "format")}
    peft_config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**peft_config, "base_model_name_or_path": loaded}))
    write_manifest(directory, {**facts, "base_model": name})


def test_a_card_without_a_run_says_what_it_does_not_know(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "adapters/v000003", tmp_path / "alone")
    adapter = read_trained(tmp_path / "alone", None)
    alone = Release(adapter=adapter, repo=REPO, tag="v000003", licence=Licence(id=None), merged=None)
    make_release(alone, tmp_path / "folder")
    text = table(tmp_path / "folder")
    assert "data, recipe and scores are unknown" in text
    assert "No evaluation of this version is on record" in text
    assert "The prompt format it was trained with is not recorded." in text
    assert "model-index" not in text
    for code in snippets(text):
        compile(code, "card", "exec")


def test_the_recipe_of_a_supervised_run(run: Path, tmp_path: Path) -> None:
    config = read_config(SftConfig, "sft_tulu3.yaml", ["model.name=embedded", "lora.init=olora", "lora.plus_ratio=16"])
    (run / "config.yaml").write_text(config.to_yaml())
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "tokens": 0}) + "\n")
    card = ModelCard.load(release(run, tmp_path / "folder") / "README.md")
    assert card.data.get("datasets") == ["allenai/tulu-3-sft-mixture"]
    assert "reinforcement" not in card.content
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+) \|$", card.text, re.MULTILINE))
    assert rows["start"] == f"olora of rank {config.lora.rank}"
    assert rows["LoRA+"] == "B learns at 16 times the rate"
    assert f"of {config.train.batch_size} " in rows["steps"]
    assert rows["optimizer"].startswith(f"Adam 0.9/0.95, {config.optim.schedule} rate ")
    assert "the chat template is the adapter's own" in card.text


def test_the_code_of_a_card_tells_the_template_what_was_told(run: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["prompt"] |= {"template": "chat", "frame": None, "template_arguments": {"enable_thinking": False}}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    text = table(release(run, tmp_path / "folder"))
    assert "the model's chat template with enable_thinking=false" in text
    peft_code, vllm_code = snippets(text)
    assert "add_generation_prompt=True, enable_thinking=False)" in peft_code
    assert "chat_template_kwargs={'enable_thinking': False})" in vllm_code
    for code in (peft_code, vllm_code):
        compile(code, "card", "exec")


def test_an_unknown_configuration_is_shipped_and_not_explained(run: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({"model": values["model"], "other": {"epochs": 3}}))
    folder = release(run, tmp_path / "folder")
    assert yaml.safe_load((folder / "run/config.yaml").read_text())["other"] == {"epochs": 3}
    assert "reinforcement" not in table(folder)
    assert "**75.0 % (69.0–80.0)**" in table(folder)


@pytest.mark.parametrize(
    ("licence", "metadata", "words"),
    [
        (Licence(id="mit", origin="given"), "mit", "released under mit"),
        (Licence(id="other", name="lama", link="https://l.org", origin="base"), "other", "[lama](https://l.org)"),
        (Licence(id=None), None, "No licence is stated"),
    ],
)
def test_the_licence_is_stated_or_said_to_be_unknown(
    run: Path, tmp_path: Path, licence: Licence, metadata: str | None, words: str
) -> None:
    adapter = read_trained(run / "adapters/latest", None)
    make_release(Release(adapter=adapter, repo=REPO, tag="t", licence=licence, merged=None), tmp_path / "folder")
    card = ModelCard.load(tmp_path / "folder" / "README.md")
    assert card.data.license == metadata
    assert words in card.text


# The code on the card, executed to the letter, against a stand-in for the hub.


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with standing_in() as hub:
        use(hub, monkeypatch, tmp_path)
        yield hub


def published(run: Path, *arguments: str) -> list[str]:
    """The code on the card of the pushed release."""
    command = ["--adapter", str(run / "adapters/latest"), "--repo", REPO, *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return snippets(table(run / "release/v000003"))


def execute(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    return names


def logprobs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=ids).logits.float(), dim=-1)


@pytest.mark.parametrize(
    "prompt",
    [
        ["prompt.template=chat", "prompt.instruction=Think."],
        ["prompt.template=frame", f"prompt.frame={json.dumps(FRAME)}", "prompt.instruction=null"],
        ["prompt.template=question_answer", "sampling.stop=['=?']"],
    ],
    ids=["chat", "frame", "named"],
)
def test_the_peft_code_gives_the_learners_model_and_prompt(
    hub: Hub, run: Path, trained: tuple[Path, LoraPolicy], prompt: list[str]
) -> None:
    config = configure(run, *prompt)
    code, _ = published(run)
    names = execute(code)
    learner = trained[1].model
    ids = names["ids"]
    renderer = Renderer(names["tokenizer"], config.prompt)
    problem = names["problem"].removesuffix(f"\n{config.prompt.instruction}")
    wanted = renderer.render(Problem(id="1", text=problem, answer=""))
    assert ids[0].tolist() == list(wanted.token_ids)
    with learner.disable_adapter():
        base = logprobs(learner, ids)
    found = logprobs(names["model"], ids)
    torch.testing.assert_close(found, logprobs(learner, ids), rtol=0, atol=LOGPROB_NATS)
    assert (found - base).abs().max() > 0.1
    assert not any(stop in names["text"] for stop in ("\nQuestion:", "=?"))


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def of_own_template(run: Path) -> None:
    """Make it a supervised run whose chat template is a file that is gone since; its adapter has a copy."""
    settings = ["model.name=embedded", "data.chat_template=/srv/mine.jinja", "prompt.template=chat"]
    (run / "config.yaml").write_text(read_config(SftConfig, "sft_tulu3.yaml", settings).to_yaml())
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "tokens": 0}) + "\n")
    version = run / "adapters" / "v000003"
    (version / "chat_template.jinja").write_text(TEMPLATE)
    facts = {name: value for name, value in read_manifest(version.parent / "v000000").items() if name != "files"}
    write_manifest(version, {**facts, "version": 3})


def test_a_chat_template_of_its_own_goes_where_the_adapter_goes(hub: Hub, run: Path) -> None:
    of_own_template(run)
    peft_code, vllm_code, _ = published(run, "--merged")
    folder = run / "release/v000003"
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert "chat_template.jinja" in read_manifest(folder)["files"]
    for place in (folder, folder / "merged"):
        asked = trained_with(place)
        assert asked is not None
        assert asked.chat_template == TEMPLATE
    assert AutoTokenizer.from_pretrained(folder / "merged").chat_template == TEMPLATE
    names = execute(peft_code)
    assert names["prompt"] == f"<user>{names['problem']}\n<assistant>"
    assert "lora_request=adapter, chat_template=template)" in vllm_code
    compile(vllm_code, "card", "exec")


def test_a_chat_template_that_is_lost_is_not_replaced_by_another(run: Path, tmp_path: Path) -> None:
    of_own_template(run)
    (run / "adapters/v000003/chat_template.jinja").unlink()
    shutil.copyfile(run / "adapters/v000000/manifest.json", run / "adapters/v000003/manifest.json")
    with pytest.raises(ValueError, match=rf"mine.jinja is not here.*: copy it to {run}/mine.jinja"):
        chat_template_of(run / "adapters/v000003")
    with pytest.raises(ValueError, match="chat_template"):
        merge(read_trained(run / "adapters/v000000", None), "float32", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    (run / "mine.jinja").write_text(TEMPLATE)
    assert chat_template_of(run / "adapters/v000003") == TEMPLATE


@pytest.mark.engine
def test_the_vllm_code_samples_from_the_adapter(
    hub: Hub,
    run: Path,
    trained: tuple[Path, LoraPolicy],
    vllm_engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the session's engine, which stands where the code makes one; its arguments are checked by vLLM's own class."""
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    made: list[dict[str, Any]] = []

    class Engine:
        def __init__(self, model: str, **arguments: Any) -> None:
            made.append({"model": model, **arguments})
            EngineArgs(model=model, **arguments)
            self._llm = vllm_engine._llm

        def chat(self, messages: Any, sampling: Any, lora_request: Any) -> Any:
            # The session's other tests have used small numbers, which vLLM never forgets.
            lora_request.lora_int_id = 777_001
            return self._llm.chat(messages, sampling, lora_request=lora_request, use_tqdm=False)

    monkeypatch.setattr(vllm, "LLM", Engine)
    peft_code, code = published(run)
    outputs = execute(code)["outputs"]
    vllm_engine._llm.llm_engine.remove_lora(777_001)
    assert made == [{"model": str(EMBEDDED_DIR), "dtype": "float32", "enable_lora": True, "max_lora_rank": 8}]
    # Greedy in float32: word for word what PEFT's code prints, which is not what the base model says.
    from_vllm = capsys.readouterr().out
    names = execute(peft_code)
    assert from_vllm == capsys.readouterr().out
    assert outputs[0].prompt_token_ids == names["ids"][0].tolist()
    with trained[1].model.disable_adapter(), torch.inference_mode():
        spoken = trained[1].model.generate(input_ids=names["ids"], max_new_tokens=72, do_sample=False)
    assert names["tokenizer"].decode(spoken[0, names["ids"].shape[1] :], skip_special_tokens=True) != from_vllm.strip()


# The merged model.


def test_the_merged_model_is_pefts_and_speaks_like_the_adapter(
    hub: Hub, run: Path, trained: tuple[Path, LoraPolicy]
) -> None:
    *_, code = published(run, "--merged", "--merged-dtype", "float32")
    assert "ignore_patterns" in snippets(table(run / "release/v000003"))[1]
    merged = execute(code)["model"]
    reference = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32), run / "adapters/v000003"
    ).merge_and_unload()
    wanted = reference.state_dict()
    for name, tensor in merged.state_dict().items():
        assert_same_sums(tensor, wanted[name], 2 + 2)  # of rank 2
    ids = torch.tensor([[11, 12, 5, 13, 7, 8, 3]])
    learner = trained[1].model
    torch.testing.assert_close(logprobs(merged, ids), logprobs(learner, ids), rtol=0, atol=LOGPROB_NATS)
    with learner.disable_adapter():
        assert (logprobs(merged, ids) - logprobs(learner, ids)).abs().max() > 0.1
    assert "added in float32, and stored as they are." in table(run / "release/v000003")
    folder = run / "release/v000003/merged"
    assert AutoTokenizer.from_pretrained(folder).chat_template
    asked, own = trained_with(folder), trained_with(run / "release/v000003")
    assert asked is not None
    assert own is not None
    assert asked == replace(own, origin=folder / "run/config.yaml")
    for path in files_of(folder):
        assert str(EMBEDDED_DIR.parent).encode() not in (folder / path).read_bytes()


def test_what_rounding_loses_is_counted_weight_by_weight(run: Path, tmp_path: Path) -> None:
    adapter = read_trained(run / "adapters/latest", None)
    found = merge(adapter, "bfloat16", tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32).state_dict()
    exact = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32), run / "adapters/v000003"
    ).merge_and_unload()
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    names = [name for name in base if re.search(r"(q|k|v|o|gate|up|down)_proj\.weight", name)]
    updates = torch.cat([(exact.state_dict()[name] - base[name]).flatten() for name in names])
    errors = torch.cat([(stored[name].float() - exact.state_dict()[name]).flatten() for name in names])
    kept = torch.cat([(stored[name] == base[name].bfloat16()).flatten() for name in names])
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    assert found.update_mean == pytest.approx(updates.abs().mean().item(), rel=1e-3)
    assert found.update_max == pytest.approx(updates.abs().max().item(), rel=1e-3)
    assert found.error_mean == pytest.approx(errors.abs().mean().item(), rel=1e-3)
    assert found.error_max == pytest.approx(errors.abs().max().item(), rel=1e-3)
    assert found.lost_frac == pytest.approx(kept.float().mean().item(), rel=1e-2)
    assert 0 < found.error_mean < found.update_mean


def test_an_update_of_a_tied_output_leaves_the_input_alone(tmp_path: Path) -> None:
    """Where output and input embedding are one matrix, merging makes them two."""
    learner = trained_run(tmp_path / "run", "lora.targets=all+lm_head").model
    merge(read_trained(tmp_path / "run/adapters/latest", None), "float32", tmp_path / "merged")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert not torch.equal(merged.get_output_embeddings().weight, base.get_output_embeddings().weight)
    ids = torch.tensor([[11, 12, 5, 13, 7, 8, 3]])
    torch.testing.assert_close(logprobs(merged, ids), logprobs(learner, ids), rtol=0, atol=LOGPROB_NATS)


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_both_parts_of_a_merged_wrapper_say_what_is_apart(kind: str, tmp_path: Path) -> None:
    """vLLM asks the language model's part of the configuration, transformers the whole's."""
    model = tiny_wrapper(kind)
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = True
    model.tie_weights()
    head = model.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight
    _untie(model, head)
    head.weight.data += 1
    model.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert stated["tie_word_embeddings"] is False
    assert stated["text_config"]["tie_word_embeddings"] is False
    loaded: Any = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight + 1)


@pytest.mark.parametrize("family", TIED_WHEN_SERVED)
def test_an_output_that_is_not_served_apart_is_not_merged(family: str) -> None:
    tied: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR)
    tied.config.model_type = family
    with pytest.raises(ValueError, match=f"which in {family} is the input embedding too"):
        _untie(tied, tied.get_output_embeddings())


@pytest.mark.parametrize(("name", "value"), [("bias", "all"), ("use_dora", True), ("fan_in_fan_out", True)])
def test_what_is_more_than_plain_lora_is_not_merged(run: Path, tmp_path: Path, name: str, value: Any) -> None:
    adapter = read_trained(run / "adapters/latest", None)
    adapter.peft[name] = value
    with pytest.raises(ValueError, match=f"the adapter has {name}"):
        merge(adapter, "float32", tmp_path / "merged")


def test_the_card_says_what_a_mix_was_made_of(run: Path) -> None:
    mix = [
        {"source": "gsm8k", "weight": 3},
        {"source": "hub", "name": "org/set", "limit": 500},
        {"source": "file", "path": "/home/me/mine.csv"},
    ]
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["data"] = {"source": "mix", "mix": mix}
    config = Config.model_validate(tree)
    trained = read_trained(run / "adapters" / "v000003", None).run
    assert trained is not None
    said = dict(recipe_rows(config, trained, None))["data"]
    assert said == (
        "a mix of [openai/gsm8k](https://huggingface.co/datasets/openai/gsm8k) (weight 3), "
        "[org/set](https://huggingface.co/datasets/org/set), the first 500 (weight 1), file, from a file (weight 1)"
    )
