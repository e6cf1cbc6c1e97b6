"""A command reports a mistake within a second, in one line, before it loads anything heavy."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rl_engine.config import load_config
from rl_engine.config.file import ConfigError
from rl_engine.run.checks import check_parts
from rollout.models import EMBEDDED_DIR

ROOT = Path(__file__).parents[2]
# A process that cannot import these libraries, and runs one command after another.
COMMANDS = """
import importlib, json, sys, time
for name in "torch vllm transformers deepspeed peft trl datasets sympy math_verify scipy matplotlib ray".split():
    sys.modules[name] = None
from typer.testing import CliRunner
answers = []
for command, *arguments in json.load(sys.stdin):
    start = time.process_time()
    app = importlib.import_module(command + ".__main__").app
    result = CliRunner().invoke(app, arguments)
    cause = type(result.exception).__name__
    answers.append([result.exit_code, result.output.strip(), time.process_time() - start, cause])
json.dump(answers, sys.stdout)
"""
TRAIN = ("rl_engine.train", "--config", "quickstart.yaml")
SFT = ("rl_engine.sft", "--config", "sft_jsonl.yaml", "model.name=embedded")
PLAN = ("rl_engine.plan", "--config", "quickstart.yaml")
EVALS = ("evals", "--model", "embedded", "--suite", "held_out", "--output", "out.json")


def answers(directory: Path, *commands: tuple[str, ...], **environment: str) -> list[tuple[int, str, float, str]]:
    """(exit code, output, CPU seconds, exception that ended it) of each command."""
    hub = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(directory / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps(commands),
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **hub, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(answer) for answer in json.loads(done.stdout)]


def model_directory(place: Path, *left_out: str) -> Path:
    """The embedded model without some of its files."""
    place.mkdir()
    for path in EMBEDDED_DIR.iterdir():
        if path.name not in left_out:
            (place / path.name).symlink_to(path)
    return place


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with things that a user may point a command at."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "metrics.jsonl").write_text('{"step": 0}\n')
    (tmp_path / "taken" / ".rl_engine").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    model_directory(tmp_path / "weightless", "model.safetensors")
    model_directory(tmp_path / "wordless", "tokenizer.json", "tokenizer_config.json")
    pointer = model_directory(tmp_path / "pointer", "model.safetensors") / "model.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    cut = model_directory(tmp_path / "cut", "model.safetensors") / "model.safetensors"
    cut.write_bytes((EMBEDDED_DIR / "model.safetensors").read_bytes()[:-1])
    cut_pickle = model_directory(tmp_path / "cut_pickle", "model.safetensors") / "pytorch_model.bin"
    cut_pickle.write_bytes(b"PK\x03\x04" + bytes(99))
    shards = model_directory(tmp_path / "half", "model.safetensors")
    (shards / "a.safetensors").write_bytes(b"a")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    (model_directory(tmp_path / "torn") / "model.safetensors.index.json").write_text("version https://git-lfs")
    twice = model_directory(tmp_path / "twice")
    (twice / "model-00001-of-00001.safetensors").write_bytes(b"a")
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (twice / "model.safetensors.index.json").write_text(json.dumps(index))
    (model_directory(tmp_path / "two_files") / "optimizer.safetensors").write_bytes(b"a")
    (model_directory(tmp_path / "no_index", "model.safetensors") / "model-00001-of-00002.safetensors").write_bytes(b"a")
    (model_directory(tmp_path / "with_adapter") / "adapter_config.json").write_text("{}")
    damaged = model_directory(tmp_path / "damaged", "config.json")
    (damaged / "config.json").write_text("{")
    (tmp_path / "an_adapter").mkdir()
    (tmp_path / "an_adapter" / "adapter_config.json").write_text("{}")
    return tmp_path


CASES: list[tuple[tuple[str, ...], str]] = [
    ((*TRAIN, "output_dir=taken"), "output_dir: taken holds a run already"),
    ((*TRAIN, "output_dir=file"), "output_dir: file is not a directory"),
    ((*TRAIN, "output_dir=file/run"), "file is not a directory"),
    ((*TRAIN, "output_dir=taken/adapters/mine"), "adapters, which the run in "),
    ((*TRAIN, "output_dir=/proc/run"), "output_dir: nothing can be written in /proc"),
    ((*TRAIN, "--overwrite", "output_dir=/proc/run"), "output_dir: nothing can be written in /proc"),
    ((*TRAIN, "data.source=gsm9k"), "data.source is 'gsm9k'; known are arithmetic, file, hub, reasoning_gym, gsm8k"),
    ((*TRAIN, "data.source=ORG/NAME"), "for a dataset on the hub give data.source=hub data.name=ORG/NAME; known are"),
    ((*TRAIN, "data.source=./file"), "for a file or directory give data.source=file data.path=./file"),
    ((*TRAIN, "data.source=data/gone.jsonl"), "give data.source=file data.path=data/gone.jsonl"),
    ((*SFT, "data.source=ORG/NAME"), "for a dataset on the hub give data.source=hub data.name=ORG/NAME; known are"),
    ((*TRAIN, "data.source=reasoning_gym"), "data.source is 'reasoning_gym', which needs data.task"),
    ((*SFT, "data.source=reasoning_gym"), "data.source is 'reasoning_gym', which needs data.task"),
    ((*TRAIN, "data.source=jsonl"), "data.source: jsonl needs data.path"),
    ((*TRAIN, "data.source=jsonl", "data.path=gone.jsonl"), "data.path: no such file: gone.jsonl"),
    ((*TRAIN, "eval.suites=[gone.jsonl]"), "suite gone: no such file: gone.jsonl"),
    ((*TRAIN, "eval.suites=[held_out,held_out]"), "eval.suites has held_out and held_out, whose scores would both be"),
    ((*TRAIN, r"sampling.stop=\n"), r"sampling.stop is '\\n': \n in it is a backslash and an n; a newline is written"),
    ((*SFT, r"prompt.system=Be brief.\nBe kind."), r"prompt.system is 'Be brief.\\nBe kind.': \n in it is"),
    ((*EVALS, "--frame", r"Q: {problem}\nA:"), r"--frame is 'Q: {problem}\\nA:': \n in it is"),
    ((*EVALS, "--output", "new/"), "--output is 'new/', which names a directory: give the name of a file in it"),
    (("rl_engine.report", "taken", "--output=x.pdf"), "--output is 'x.pdf': the page is HTML; give FILE.html"),
    (("rl_engine.report", "taken", "--output=new/"), "--output is 'new/', which names a directory"),
    (
        (*TRAIN, "eval.suites=[gsm8k]", "eval.data_dir=empty"),
        "eval.data_dir: empty has no gsm8k_test.jsonl for the suite gsm8k",
    ),
    ((*TRAIN, "rewards.function=nobody.wrote:it"), "rewards.function is 'nobody.wrote:it': there is no module"),
    ((*TRAIN, "rewards.function=rewards.no_such:it"), "there is no module 'rewards.no_such'"),
    ((*TRAIN, "lora.start_from=empty"), "lora.start_from: empty is not an adapter"),
    ((*TRAIN, "model.name=./gone"), "'./gone' is not a model directory (no config.json there)"),
    ((*TRAIN, "model.name=https://huggingface.co/a/b"), "neither a directory here nor a name of the hub"),
    ((*TRAIN, "model.name=empty"), "'empty' is not a model directory (no config.json there)"),
    ((*TRAIN, "model.name=an_adapter"), "an adapter is there, without its base model"),
    ((*TRAIN, "model.name=weightless"), "has no weights"),
    ((*TRAIN, "model.name=wordless"), "model.name: 'wordless' has no tokenizer"),
    ((*TRAIN, "model.name=pointer"), "git lfs pull"),
    ((*TRAIN, "model.name=half"), "1 of 2 files of weights; b.safetensors is not there"),
    ((*TRAIN, "model.name=cut"), "cut/model.safetensors is damaged or was not fetched whole ("),
    ((*EVALS, "--model", "cut_pickle"), "pytorch_model.bin is damaged or was not fetched whole (its end is missing)"),
    ((*TRAIN, "model.name=damaged"), "config.json is damaged"),
    (
        (*TRAIN, "model.name=twice"),
        "weights twice, in model.safetensors, which transformers reads, and",
    ),
    (
        (*EVALS, "--model", "two_files"),
        "two_files' has optimizer.safetensors beside model.safetensors: transf",
    ),
    (
        (*TRAIN, "model.name=no_index"),
        "-00001-of-00002.safetensors but neither model.safetensors nor model.safetensors.",
    ),
    ((*SFT, "model.name=with_adapter"), "with_adapter' holds a model and an adapter (adapter_config.json), which"),
    ((*TRAIN, "model.name=torn"), "torn/model.safetensors.index.json is damaged"),
    ((*TRAIN, "--dry-run", "model.name=wordless"), "model.name: 'wordless' has no tokenizer"),
    ((*TRAIN, "--dry-run", "data.source=gsm9k"), "data.source is 'gsm9k'"),
    ((*SFT,), "data.source: jsonl needs data.path"),
    ((*SFT, "data.source=tulu"), "data.source is 'tulu'; known are"),
    ((*SFT, "data.path=gone.jsonl"), "data.path: no such file: gone.jsonl"),
    ((*SFT, "data.source=arithmetic", "output_dir=taken"), "output_dir: taken holds a run already"),
    ((*SFT, "data.source=arithmetic", "output_dir=/proc/run"), "nothing can be written in /proc"),
    ((*SFT, "model.name=weightless"), "has no weights"),
    ((*EVALS, "--suite", "gone.jsonl"), "suite gone: no such file: gone.jsonl"),
    ((*EVALS, "--timeout-s", "1000"), "--timeout-s is '1000': input should be less than or equal to 600"),
    ((*EVALS, "--problem", "q"), "--problem is q, and has no effect: no suite is a file"),
    ((*EVALS, "--suite", "gone.jsonl", "--answer", "a"), "suite gone: no such file: gone.jsonl"),
    ((*EVALS, "--suite", "gsm8k", "--data-dir", "empty"), "--data-dir: empty has no gsm8k_test.jsonl for the suite"),
    ((*EVALS, "--suite", "gsm9k"), "--suite: no suite 'gsm9k'"),
    ((*EVALS, "--output", "file"), "--output: file already exists"),
    ((*EVALS, "--overwrite", "--output", "empty"), "--output: empty is a directory"),
    ((*EVALS, "--adapter", "gone"), "--adapter gone: no such directory"),
    ((*EVALS, "--output", "/proc/x/o.json"), "--output: nothing can be written in /proc"),
    ((*TRAIN, f"output_dir={'x' * 300}"), "cannot be a directory: File name too long"),
    ((*EVALS, "--no-base"), "nothing to measure"),
    ((*EVALS, "--train-data", "gone.jsonl"), "--train-data: no such file: gone.jsonl"),
    ((*EVALS, "--model", "wordless"), "--model: 'wordless' has no tokenizer"),
    ((*EVALS, "--model", "./gone"), "--model: './gone' is not a model directory"),
    (("rl_engine.doctor", "data.source=gsm9k"), "data.source is 'gsm9k'"),
    (("rl_engine.doctor", "model.name=weightless"), "has no weights"),
    (("rl_engine.plan", "--config", "quickstart.yaml", "model.name=./gone"), "'./gone' is not a model directory"),
    (("rl_engine.plan", "--config", "quickstart.yaml", "--devices", "x"), "--devices: 'x' is not COUNTxGIB"),
    (
        ("rl_engine.plan", "--config", "quickstart", "--config", "quickstart", "--devices", "1x80", "--devices=0x80"),
        "--devices: '0x80'; expected a count of at least 1",
    ),
    ((*PLAN, "--mfu", "0.5"), "--mfu is 0.5, and has no effect: give --card too"),
    ((*PLAN, "--from-devices=8"), "--from-devices is 8, and has no effect: give --from too"),
    ((*PLAN, "--loss-nats=1"), "--loss-nats is 1.0, and has no effect: give --supervised-tokens too"),
    ((*PLAN, "--config", "gsm8k", "--card", "9", "9"), "--card has no effect with several --config: plan them"),
    ((*EVALS, "--top-k=3"), "--top-k is 3, and has no effect: at temperature 0"),
    ((*EVALS, "--min-p=0.1", "--temperature=0"), "--min-p is 0.1, and has no effect: at temperature 0"),
    (("rl_engine.plan", "--config", "quickstart.yaml", "--from", "gone"), "--from: gone is not a run's directory"),
    (("rl_engine.plan", "--config", "quickstart.yaml", "--from", "taken"), "--from: taken is not a run's directory"),
    (("rl_engine.sweep", "--config", "sweep_rates.yaml", "set.data.source=gsm9k"), "data.source is 'gsm9k'"),
    (("rl_engine.sweep", "--config", "sweep_rates.yaml", "output_dir=/proc/x"), "nothing can be written in /proc"),
    (("rl_engine.report", "gone"), "gone"),
    (("rl_engine.push", "--adapter", "gone", "--repo", "a/b", "--dry-run"), "gone"),
    (("rl_engine.inspect", "gone"), "gone"),
    (("rl_engine.inspect", "an_adapter", "--plot", "x.foo"), "--plot is 'x.foo': give a name that ends in"),
]


def test_a_mistake_is_reported_within_two_seconds_without_torch(here: Path) -> None:
    found = answers(here, *(command for command, _ in CASES))
    for (command, words), (code, output, seconds, cause) in zip(CASES, found, strict=True):
        assert (code, cause) == (2, "SystemExit"), (command, output)
        assert output.startswith("error: "), (command, output)
        assert words in output, (command, output)
        assert output.count("\n") == 0, (command, output)
        assert seconds < 2, command
    assert not (here / "runs").exists()


def test_a_tracker_that_is_not_installed_is_reported_at_once(here: Path) -> None:
    """A directory with the tracker's name, as each tracker leaves where it has run, does not count as the package."""
    trackers = ("wandb", "trackio")
    for name in trackers:
        (here / name).mkdir()
    found = answers(here, *((*TRAIN, f"log.{name}=mine") for name in trackers))
    for name, (code, output, *_) in zip(trackers, found, strict=True):
        assert (code, output) == (2, f"error: log.{name} is set, and {name} is not installed: pip install {name}")


def test_the_line_before_the_silence_names_what_is_loaded(here: Path) -> None:
    """A correct command next loads torch, which this process cannot import."""
    commands = [(*TRAIN, "output_dir=new"), EVALS, (*SFT, "data.source=arithmetic"), ("rl_engine.doctor",)]
    for _, output, _, cause in answers(here, *commands):
        assert output.startswith("loading torch, transformers and "), output
        assert cause == "ModuleNotFoundError"


class _Hub(BaseHTTPRequestHandler):
    """Answers a request for a repository by its name."""

    def do_HEAD(self) -> None:
        status, code = next(
            (answer for name, answer in ANSWERS.items() if f"/{name}/" in self.path), (401, "RepoNotFound")
        )
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "2")
        self.send_header("ETag", "x")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


ANSWERS = {
    "org/model": (200, ""),
    "org/gated": (403, "GatedRepo"),
    "org/other": (404, "EntryNotFound"),
    "org/old": (404, "RevisionNotFound"),
    "org/busy": (503, ""),
    "openai/gsm8k": (200, ""),
}


@contextmanager
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


OF_HUB = [
    ((*TRAIN, "model.name=org/gated"), "org/gated is gated: ask for access at https://huggingface.co/org/gated"),
    ((*TRAIN, "model.name=models/qwen"), "no directory models/qwen here, and the hub has no such model"),
    ((*TRAIN, "model.name=org/other"), "org/other on the hub is not a model: it has no config.json"),
    ((*TRAIN, "model.name=org/old", "model.revision=v9"), "org/old has no revision 'v9'"),
    ((*TRAIN, "model.name=org/busy"), "no directory org/busy here, and the hub answers 503"),
    ((*TRAIN, "model.name=my model"), "'my model' is neither a directory here nor a name of the hub"),
    ((*PLAN, "model.name=org/modle"), "no directory org/modle here, and the hub has no such model"),
    ((*PLAN, "model.name=org/gated"), "is gated"),
    ((*TRAIN, "--dry-run", "model.name=org/gated"), "is gated"),
    ((*EVALS, "--model", "org/gated"), "--model: org/gated is gated"),
    ((*EVALS, "--suite", "aime2024"), "--suite aime2024: HuggingFaceH4/aime_2024 is on the hub, and the hub has no"),
    ((*SFT, "data.source=tulu3"), "data.source tulu3: allenai/tulu-3-sft-mixture is on the hub, and the hub has no"),
    ((*TRAIN, "data.source=deepmath"), "data.source deepmath: zwhe99/DeepMath-103K is on the hub"),
]


def test_what_the_hub_refuses_is_one_line(here: Path) -> None:
    with hub() as url:
        found = answers(here, *(command for command, _ in OF_HUB), HF_ENDPOINT=url)
        good = answers(here, (*TRAIN, "model.name=org/model", "data.source=gsm8k"), HF_ENDPOINT=url)
    for (command, words), (code, output, seconds, cause) in zip(OF_HUB, found, strict=True):
        assert (code, cause) == (2, "SystemExit"), (command, output)
        assert output.startswith("error: "), output
        assert words in output, output
        assert output.count("\n") == 0, output
        assert seconds < 3, command
    assert good[0][1].startswith("loading torch")


@pytest.mark.parametrize(("offline", "words"), [("0", "cannot be reached"), ("1", "HF_HUB_OFFLINE is set")])
def test_without_the_hub_one_question_and_one_line(here: Path, offline: str, words: str) -> None:
    commands: list[tuple[str, ...]] = [
        (*TRAIN, "model.name=models/qwen"),
        (*PLAN, "model.name=models/qwen"),
        ("rl_engine.train", "--config", "gsm8k.yaml"),
        ("rl_engine.sft", "--config", "sft_tulu3.yaml"),
        (*EVALS, "--suite", "gsm8k"),
    ]
    for code, output, seconds, _ in answers(here, *commands, HF_HUB_OFFLINE=offline):
        assert code == 2
        assert output.startswith("error: "), output
        assert words in output
        assert output.count("\n") == 0, output
        assert seconds < 3


def test_an_earlier_download_does_without_the_hub(here: Path) -> None:
    snapshots = here / "hub" / "hub" / "models--org--model"
    (snapshots / "refs").mkdir(parents=True)
    (snapshots / "refs" / "main").write_text("0" * 40)
    (snapshots / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (snapshots / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    (here / "hub" / "datasets" / "openai___gsm8k").mkdir(parents=True)
    (answer,) = answers(here, (*TRAIN, "model.name=org/model", "data.source=gsm8k"))
    assert answer[1].startswith("loading torch")


def test_supervised_training_refuses_a_launcher_at_once(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"problem": "1", "solution": "1"}\n')
    command = (*SFT, "data.path=answers.jsonl", "output_dir=out")
    ((code, output, _, _),) = answers(tmp_path, command, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")
    assert (code, output.partition("WORLD_SIZE is 2")[2]) == (2, ": run the command without a launcher")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("allowed", "refused"), [(64, True), (1024, False), (resource.RLIM_INFINITY, False)])
def test_too_few_open_files_are_reported_before_loading(
    allowed: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise gloo says of two ranks that it cannot resolve 127.0.0.1, in a traceback."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    with (
        pytest.raises(ConfigError, match=r"^this shell allows a process 64 .* \(ulimit -n 1024\)$")
        if refused
        else (contextlib.nullcontext())
    ):
        check_parts(load_config("quickstart.yaml"))
