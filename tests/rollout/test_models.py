"""Any config.json: one that describes no model is reported in one line, and code beside it is not run."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mistral_common
import pytest
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, dynamic_module_utils
from typer.testing import CliRunner

from rl_engine.plan.__main__ import app
from rl_engine.policy.base_model import load_weights
from rl_engine.train.__main__ import app as train
from rollout.config import ModelConfig
from rollout.engine import EngineSettings
from rollout.models import EMBEDDED_DIR, check_every_weight, check_files, read_model_config, read_tokenizer
from tests.helpers.families import write_tiny

EMBEDDED: dict[str, Any] = json.loads((EMBEDDED_DIR / "config.json").read_text())
# Mistakes that a user may have made, and what the message says.
DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": "4"}, "num_hidden_layers' expected int, got str"),
    ({"vocab_size": None}, "vocab_size' expected int, got NoneType"),
    ({"vocab_size": -1}, "negative dimension"),
    ({"max_position_embeddings": "32k"}, "max_position_embeddings' expected int"),
    ({"model_type": "qwen2", "num_attention_heads": 0}, "ZeroDivisionError: "),
    ({"hidden_act": "swoosh"}, "swoosh"),
    ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"rope_parameters": {"rope_type": "magic", "rope_theta": 1e4}}, "magic"),
    ({"torch_dtype": "float7", "dtype": "float7"}, "float7"),
    ({"pad_token_id": 32000}, "Padding_idx must be within num_embeddings"),
    ({"quantization_config": [1]}, "list"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"model_type": "qwen99"}, "qwen99"),
    ({"model_type": "t5"}, "is an encoder-decoder"),
    ({"model_type": "gemma3n"}, "timm"),
]


def planned(directory: Path, values: dict[str, Any]) -> Any:
    (directory / "config.json").write_text(json.dumps(values))
    return CliRunner().invoke(app, ["--config", "quickstart.yaml", f"model.name={directory}", "--devices", "1x80"])


@pytest.mark.parametrize(("changed", "words"), DAMAGED, ids=lambda each: str(each)[:40])
def test_what_describes_no_model_is_one_line(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    done = planned(tmp_path, {**EMBEDDED, **changed})
    assert done.exit_code == 2, done.output
    _, error = done.stderr.strip().split("\nerror: ")
    assert error.startswith(f"model.name: {tmp_path}: ")
    assert words in error
    assert error.count("\n") == 0
    assert len(error) < 600


def test_a_plan_neither_runs_nor_asks_about_a_model_s_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)
    monkeypatch.setattr("builtins.input", lambda _: "y")
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')\nclass Mine: pass\n")
    done = planned(tmp_path, {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}})
    assert (done.exit_code, "custom code" in done.stderr) == (2, True)
    assert not (tmp_path / "made").exists()


UP = "model.layers.1.mlp.up_proj.weight"
Stored = dict[str, Tensor]
# What a weights file may hold instead of the embedded model's own weights, and what the message says.
OTHERS: dict[str, tuple[Callable[[Stored], Stored], str]] = {
    "wrapped": (lambda own: {f"module.{name}": value for name, value in own.items()}, "lack 47 of the weights"),
    "not_whole": (lambda own: {name: value for name, value in own.items() if name != UP}, rf"lack 1 of .* \({UP}\)"),
    "wider": (
        lambda own: own | {UP: own[UP].repeat(2, 1)},
        r"lack .*_proj.weight, \[1024, 192\] there and \[512, 192\] by",
    ),
    "two_embeddings": (
        lambda own: own | {"lm_head.weight": own["model.embed_tokens.weight"] * 2},
        "hold an output embedding .* set tie_word_embeddings to false there",
    ),
}


@pytest.mark.parametrize(("others", "words"), OTHERS.values(), ids=OTHERS)
def test_weights_that_do_not_fit_config_json_are_refused(
    others: Callable[[Stored], Stored], words: str, tmp_path: Path
) -> None:
    """transformers would continue with random weights, or with an output embedding that the sampler does not have, and
    neither supervised training nor a merge has a sampler to compare with."""
    shutil.copytree(EMBEDDED_DIR, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    save_file(others(load_file(EMBEDDED_DIR / "model.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"^model.name: .*: its files {words}"):
        load_weights(ModelConfig(name=str(tmp_path)), "sdpa")


@pytest.mark.parametrize("lost", ["mlp.gate_proj", "self_attn.k_proj", "mlp.experts.2.up_proj"])
def test_a_sampler_s_model_has_every_part_of_a_layer(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """vLLM joins these weights into one, and leaves the memory of a missing part as it finds it: `evals` gave a score
    for such a model. With experts missing, transformers ends in an error of its own."""
    from rollout.vllm import engine

    write_tiny("qwen3_moe" if "experts" in lost else "qwen3", tmp_path)
    own = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in own.items() if not name.startswith(f"model.layers.1.{lost}.")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(engine, "LLM", pytest.fail)
    capfd.readouterr()
    with pytest.raises(ValueError, match=f"^{tmp_path}: its files lack (1|some) of the weights that "):
        engine.VllmEngine(EngineSettings(model=str(tmp_path), dtype="float32", max_model_len=64, lora_rank=0))
    assert "REPORT" not in "".join(capfd.readouterr())
    with pytest.raises(ValueError, match=r"^model.name: .*: its files lack (1|some) of the weights that "):
        load_weights(ModelConfig(name=str(tmp_path)), "sdpa")


def test_the_input_embedding_of_two_tied_is_stored(tmp_path: Path) -> None:
    """safetensors' save_model keeps the first by the alphabet, lm_head. transformers takes it for both, and vLLM reads
    no output embedding of such a model: it computed with whatever its memory held."""
    shutil.copytree(EMBEDDED_DIR, tmp_path, dirs_exist_ok=True)
    own = load_file(EMBEDDED_DIR / "model.safetensors")
    model_config = read_model_config(str(tmp_path), None, "M")
    check_every_weight(model_config, str(tmp_path), None, "M")
    kept = {name.replace("model.embed_tokens", "lm_head"): value for name, value in own.items()}
    (tmp_path / "model.safetensors").unlink()
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    load_weights(ModelConfig(name=str(tmp_path)), "sdpa")
    with pytest.raises(ValueError, match=r"^M: its files lack 1 of .* \(model\.embed_tokens\.weight\)"):
        check_every_weight(model_config, str(tmp_path), None, "M")


def test_files_that_nothing_loads_may_be_missing_or_pointers(tmp_path: Path) -> None:
    """What `hf download --exclude '*.bin'` and `git lfs pull --include 'model*'` leave behind."""
    shutil.copytree(EMBEDDED_DIR, tmp_path, dirs_exist_ok=True)
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "pytorch_model-00001-of-00002.bin"}}')
    check_files(str(tmp_path))
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    (tmp_path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    check_files(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "consolidated.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    check_files(str(tmp_path))


# What may be in the place of a tokenizer's files, and what the message says of it.
TOKENIZERS: dict[str, tuple[dict[str, str], str]] = {
    # transformers' own class for the family, without a vocabulary: training used to see every text as nothing.
    "none": ({}, r"has no tokenizer \(none of tokenizer.json, "),
    "half_a_file": ({"tokenizer.json": '{"model": '}, "its tokenizer cannot be read: Expecting value: line 1"),
    "a_newer_kind": (
        {"tokenizer.json": '{"model": {"type": "New"}, "added_tokens": []}'},
        "its tokenizer cannot be read: Exception: data did not match any variant",
    ),
    "no_fields": ({"tokenizer.json": "{}"}, "its tokenizer cannot be read: KeyError: 'added_tokens'"),
    # First looked at when a text is read.
    "no_length": (
        {
            "tokenizer.json": (EMBEDDED_DIR / "tokenizer.json").read_text(encoding="utf-8"),
            "tokenizer_config.json": '{"model_max_length": "x"}',
        },
        "its tokenizer cannot be read: TypeError: '>' not supported between",
    ),
}


@pytest.mark.parametrize(("files", "words"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_what_is_no_tokenizer_is_one_line(files: dict[str, str], words: str, tmp_path: Path) -> None:
    shutil.copy(EMBEDDED_DIR / "config.json", tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"^{tmp_path}:? {words}") as refused:
        read_tokenizer(str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    """A model as Mistral publishes some: its only tokenizer is in the format of Mistral's own library."""
    place = tmp_path / "a 'mistral'"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({**EMBEDDED, "model_type": "mistral"}))
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json", place / "tekken.json")
    return place


def test_a_model_with_tekken_alone_is_refused_before_loading(mistral: Path) -> None:
    for command, options in ((train, ["--dry-run"]), (train, ["--overwrite"]), (app, ["--devices", "1x80"])):
        ended = CliRunner().invoke(command, ["--config", "quickstart.yaml", *options, f"model.name={mistral}"])
        assert ended.exit_code == 2, ended.output
        (line,) = ended.stderr.strip().splitlines()
        assert line.startswith(f"error: model.name: {str(mistral)!r} has no tokenizer but tekken.json")
        assert "write a tokenizer.json into it with  python -c " in line


def test_the_command_that_is_named_writes_mistral_s_tokens(mistral: Path) -> None:
    """Tokens and chat template match Mistral's own library, for conversations and for the texts in them."""
    with pytest.raises(ValueError, match=r"has no tokenizer but tekken\.json") as refused:
        read_tokenizer(str(mistral))
    _, *command = shlex.split(str(refused.value).rpartition("into it with  ")[2])
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    written, own = read_tokenizer(str(mistral)), MistralTokenizer.from_file(str(mistral / "tekken.json"))
    assert (written.bos_token, written.eos_token, written.pad_token) == ("<s>", "</s>", "<pad>")
    for text in ("1+{2}=?", "Grüße, x²≥0\n\n  fooBar's 1234567", r"\boxed{\frac{1}{2}} 日本語 🙂"):
        messages = [UserMessage(content=text), AssistantMessage(content=text), UserMessage(content=text)]
        expected = own.encode_chat_completion(ChatCompletionRequest(messages=[SystemMessage(content="S"), *messages]))
        roles = [("system", "S"), ("user", text), ("assistant", text), ("user", text)]
        rendered = written.apply_chat_template(
            [{"role": role, "content": content} for role, content in roles], tokenize=False, add_generation_prompt=True
        )
        assert written.encode(rendered, add_special_tokens=False) == expected.tokens


def test_a_hub_model_with_tekken_alone_says_how_to_fetch_it(mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = type("Tokenizer", (), {"vocab_file": str(mistral / "tekken.json")})()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: found)
    with pytest.raises(ValueError, match=r"^org/name has no tokenizer but .*`hf download org/name --local-dir DIR`"):
        read_tokenizer("org/name")


def test_a_vocabulary_of_added_tokens_is_a_tokenizer(tmp_path: Path) -> None:
    """As of a small model of one's own, with a token for each character."""
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")), unk_token="?")
    made.add_tokens([*"12"])
    made.save_pretrained(tmp_path)
    shutil.copy(EMBEDDED_DIR / "config.json", tmp_path)
    assert read_tokenizer(str(tmp_path)).encode("21") == [2, 1]
