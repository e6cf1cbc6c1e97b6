"""What the model card of a release says."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from rl_engine.config import Config
from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rl_engine.push.model_card import Licence, Release
from rl_engine.push.recipe import recipe_rows
from rl_engine.push.release import files_of, make_release
from rl_engine.run.trained_adapter import read_trained
from rollout.adapters import AdapterStore, sha256_of
from tests.helpers.releases import REPO, configure, release, rename_base, snippets, table
from tests.helpers.run_directories import LAST, report


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
    # A heading that touches the code above it is part of it for some renderers.
    assert not re.search(r"[^\n]\n#+ ", re.sub(r"```.*?```", "```", card.text, flags=re.DOTALL))
    # The base model has no score on gsm8k.
    assert "| gsm8k (version 1) | avg@1 | not measured | **44.4 % (40.0–49.0)** |" in card.text


def test_names_of_suites_stay_in_their_place(run: Path, tmp_path: Path) -> None:
    """A suite is called after its file, whose name may hold what Markdown and YAML read as signs."""
    name = "odd | name: #1 [x] <b>*"
    report("policy-v000003", 0.4444, (0.4, 0.49), suite=name).write(run / "evals")
    card = ModelCard.load(release(run, tmp_path / "folder") / "README.md")
    assert {one.dataset_name for one in card.data.eval_results or []} == {"held_out", name}
    (row,) = [line for line in card.text.splitlines() if line.startswith("| odd")]
    assert row.startswith(r"| odd \| name: #1 \[x] \<b>\* (version 1) | avg@1 | not measured | **44.4 %")


def test_a_card_of_version_zero_claims_no_training(run: Path, tmp_path: Path) -> None:
    """A run is published as its best version, which is its start if training only lost accuracy."""
    said = "**This is version 0, as the run began: it holds none of that training.**"
    assert said not in table(release(run, tmp_path / "end"))
    AdapterStore(run / "adapters").point("latest", 0)
    assert said in table(release(run, tmp_path / "start"))


def test_a_base_score_in_another_setting_is_no_comparison(run: Path, tmp_path: Path) -> None:
    path = run / "evals/held_out-policy-v000000.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.6}))
    assert "| held_out (version 1) | avg@1 | not measured | **75.0 %" in table(release(run, tmp_path / "folder"))


def test_version_zero_of_a_continued_adapter_is_no_base_model(run: Path, tmp_path: Path) -> None:
    """The run continued another adapter, and version 0 contains that adapter's update."""
    configure(run, "lora.start_from=/srv/adapters/first")
    folder = release(run, tmp_path / "folder")
    assert "| held_out (version 1) | avg@1 | not measured | **75.0 %" in table(folder)
    assert "| start | another adapter (`lora.start_from`) |" in table(folder)
    assert not [path for path in files_of(folder) if b"/srv" in (folder / path).read_bytes()]


def test_the_highest_of_several_scores_is_labelled_so(run: Path, tmp_path: Path) -> None:
    words = "It scored highest among the evaluated versions"
    assert words not in table(release(run, tmp_path / "folder"))
    AdapterStore(run / "adapters").point("best", 0)
    assert words not in table(release(run, tmp_path / "folder"))
    AdapterStore(run / "adapters").point("best", LAST)
    assert words in table(release(run, tmp_path / "folder"))


def test_what_evals_wrote_counts_for_the_version_it_measured(run: Path, tmp_path: Path) -> None:
    """A row is matched by the digest of the version's manifest, whatever its name, and compared with the base model's
    row of the same file."""

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


def test_the_recipe_is_the_configurations(run: Path, tmp_path: Path) -> None:
    configure(run, "loss.name=ppo_clip", "loss.kl_coef=0.01", "optim.lr=3e-5", "seed=7", "data.source=gsm8k")
    text = table(release(run, tmp_path / "folder"))
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+) \|$", text, re.MULTILINE))
    assert rows["method"] == "LoRA of rank 2, α = 32: W + (α / rank) · B·A"
    assert rows["targets"].endswith("28 matrices, 29,184 trained parameters")  # twice as many as with rank 1
    assert rows["data"] == "gsm8k, from a file"
    assert rows["sampling"] == "64 problems × 8 completions a step, at most 72 tokens, temperature 1"
    assert rows["reward"].startswith("1 for a correct final answer, else 0; a function of its own (weight 1)")
    assert "`ppo_clip` over `group_mean`" in rows["objective"]
    assert "clip_low 0.2, clip_high 0.2, KL to the base model × 0.01 (k3)" in rows["objective"]
    assert rows["optimizer"] == "Adam 0.9/0.95, constant rate 3e-05"
    assert rows["steps"] == "3 of 5, one update each; 1,536 completions"
    assert rows["training time"] == "6 s, the sum of the steps"
    assert rows["KL to the base model"] == "0.03 nats per token at the last step"
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


def test_the_code_of_a_card_has_the_template_arguments(run: Path, tmp_path: Path) -> None:
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
def test_the_licence_is_stated_or_reported_as_unknown(
    run: Path, tmp_path: Path, licence: Licence, metadata: str | None, words: str
) -> None:
    adapter = read_trained(run / "adapters/latest", None)
    make_release(Release(adapter=adapter, repo=REPO, tag="t", licence=licence, merged=None), tmp_path / "folder")
    card = ModelCard.load(tmp_path / "folder" / "README.md")
    assert card.data.license == metadata
    assert words in card.text


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
        "[org/set](https://huggingface.co/datasets/org/set), the first 500 (weight 1), a file (weight 1)"
    )
