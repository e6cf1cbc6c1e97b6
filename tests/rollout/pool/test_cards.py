"""A machine's GPUs: the names by which another process is given them, and the messages if torch cannot use them."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import triton_cache_dir
from typer.testing import CliRunner

import rollout.vllm
from evals.__main__ import app as evals
from rl_engine.config.file import ConfigError
from rl_engine.doctor.__main__ import app as doctor
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.placement import check_placement
from rl_engine.sft.__main__ import app as sft
from rl_engine.train.__main__ import app as train
from rollout import servable
from rollout.pool.cards import visible_cards
from rollout.pool.local_cluster import _visible_cards
from rollout.servable import check_cards, check_semaphores, driver_version, serving_precision
from tests.conftest import ConfigMaker

UUIDS = ("GPU-6c1f3d4e-0000-0000-0000-000000000001", "MIG-6c1f3d4e-0000-0000-0000-000000000002")


@pytest.mark.parametrize(
    ("given", "count", "names"),
    [
        (None, 2, ("0", "1")),
        ("4,5,6,7", 4, ("4", "5", "6", "7")),
        ("7, 3", 2, ("7", "3")),
        (",".join(UUIDS), 2, UUIDS),
        # CUDA reads the list up to the first entry that is no GPU.
        ("2,-1,3", 1, ("2",)),
        ("", 0, ()),
    ],
)
def test_a_card_has_the_name_that_this_process_was_given(given: str | None, count: int, names: tuple[str, ...]) -> None:
    environment = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert visible_cards(count, environment) == names


@pytest.mark.parametrize(
    ("given", "workers"), [("4,5,6,7", "5,6,7"), (f"0,{','.join(UUIDS)},3", f"{','.join(UUIDS)},3")]
)
def test_a_local_pool_gets_the_cards_after_the_learners(
    given: str, workers: str, make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl_engine.sampling.placement import _pool_settings

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    on_card = Ranks(0, 1, torch.device("cuda:0"))
    settings = _pool_settings(make_config("rollout.placement=ray", "rollout.workers=3"), on_card)
    with _visible_cards(settings.cards):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == workers
    assert os.environ["CUDA_VISIBLE_DEVICES"] == given
    with pytest.raises(ConfigError, match="leave 3 of those that CUDA shows here"):
        check_placement(make_config("rollout.placement=ray", "rollout.workers=4"), on_card)


@pytest.fixture
def old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose nvidia-smi works, with a torch for CUDA 13 that sees no GPU."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return program


SAID = (
    f"nvidia-smi answers (driver 550.54.15), and torch {torch.__version__} for CUDA 13.0 sees no card: it needs driver"
)


def test_every_command_reports_an_older_driver_in_one_line(
    old_driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 200)
    for app, arguments in (
        (train, ["--config", "quickstart.yaml"]),
        (train, ["--config", "quickstart.yaml", "--dry-run"]),
        (doctor, []),
        (sft, ["--config", "embedded.yaml", "model.name=embedded", "output_dir=run"]),
        (evals, ["--model", "embedded", "--suite", "held_out", "--output", "found.json"]),
    ):
        told = CliRunner().invoke(app, arguments)
        assert told.exit_code == 2, told.output
        (line,) = [line for line in told.output.splitlines() if "error:" in line]
        assert f"{SAID} 580 or newer" in line
    assert not (tmp_path / "runs" / "quickstart" / "config.yaml").exists()


def test_what_hides_the_cards_is_named(old_driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_driver.write_text("#!/bin/sh\necho 580.65.06\n")
    assert driver_version() == "580.65.06"
    with pytest.raises(ValueError, match=r"sees no card: python -c 'import torch; torch\.cuda\.init\(\)' says why"):
        check_cards()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES is '', which hides every card"):
        check_cards()


@pytest.mark.parametrize("answer", ["echo 'NVIDIA-SMI has failed' >&2; exit 9", "echo No devices were found", "exit 0"])
def test_where_no_card_answers_nothing_is_reported(old_driver: Path, answer: str) -> None:
    old_driver.write_text(f"#!/bin/sh\n{answer}\n")
    assert driver_version() is None
    check_cards()


def test_full_shared_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_semaphores()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("multiprocessing.synchronize.Lock", full)
    with pytest.raises(ValueError, match=r"none can be made in /dev/shm \(No space left on device\): make room there"):
        check_semaphores()


def test_a_torch_without_cuda_is_not_asked_about_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(servable, "driver_version", lambda: pytest.fail("asked"))
    check_cards()


@pytest.mark.parametrize(
    ("cuda", "dtype", "model", "found"),
    [
        (False, "auto", "embedded", "float32"),
        (True, "auto", "embedded", "bfloat16"),
        (False, "auto", "org/model", "bfloat16"),
        (True, "auto", "org/model", "bfloat16"),
        (False, "bfloat16", "embedded", "bfloat16"),
    ],
)
def test_the_precision_that_is_served_in(
    cuda: bool, dtype: str, model: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert serving_precision(dtype, model, adapter=True) == found


def test_float32_serves_no_adapter_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert serving_precision("float32", "embedded", adapter=False) == "float32"
    with pytest.raises(ValueError, match=r"^--dtype is float32, .*: give bfloat16, or auto"):
        serving_precision("float32", "embedded", adapter=True)


def test_an_old_card_computes_in_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ValueError, match=r"^--dtype is .*, which Tesla T4 .* \(compute capability 7\.5; .* 8\.0\)"):
        serving_precision("auto", "org/model", adapter=True)
    assert serving_precision("float32", "org/model", adapter=False) == "float32"


@pytest.fixture
def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which CUDA shows this process one GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_a_process_without_a_card_of_its_own_says_so(one_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    check_cards()
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_cards()
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="LOCAL_RANK is 1, and CUDA shows this process 1 card:"):
        check_cards()


@pytest.mark.parametrize("name", ["GPU-6c1f3d4e", "0, GPU-6c1f3d4e-0000-0000-0000-000000000001"])
def test_a_card_is_named_so_that_the_sampler_finds_it(
    name: str, one_card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM asks NVML for the GPU with exactly that UUID, whereas CUDA accepts a prefix."""
    for known in ("3", "0,1", " 2", ",".join(UUIDS)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", known)
        check_cards()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    with pytest.raises(ValueError, match=r"CUDA_VISIBLE_DEVICES names a card '.*', and vLLM accepts"):
        check_cards()


def test_what_is_compiled_for_a_card_serves_every_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is about Triton's kernels: torch's compiler would cache them with the one model that an engine has
    compiled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "of-one-model"))
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    assert triton_cache_dir(0).startswith(str(tmp_path / "of-one-model"))
    importlib.reload(rollout.vllm)
    assert triton_cache_dir(0) == str(tmp_path / "home" / ".triton" / "cache")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "mine"))
    importlib.reload(rollout.vllm)
    assert triton_cache_dir(0) == str(tmp_path / "mine")


@pytest.mark.parametrize("home", ["/proc/nobody", "~"])
def test_a_home_that_cannot_be_written_keeps_no_kernels(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler then uses its own directory, and nothing fails at the first kernel. `~` stands for a user
    without a home directory."""
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", home)
    importlib.reload(rollout.vllm)
    assert "TRITON_CACHE_DIR" not in os.environ
    assert not Path(home).exists()


@pytest.mark.parametrize("home", ["/proc/nobody", "~"])
def test_vllm_has_a_place_where_there_is_no_home(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM used to log a page about that at every start, or to write its cache to a directory called `~`."""
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("VLLM_CACHE_ROOT", "mine")
    importlib.reload(rollout.vllm)
    assert os.environ["VLLM_CACHE_ROOT"] == "mine"
    monkeypatch.delenv("VLLM_CACHE_ROOT")
    importlib.reload(rollout.vllm)
    place = Path(os.environ["VLLM_CACHE_ROOT"])
    assert place.is_dir()
    assert place.parent == Path(tempfile.gettempdir())
    place.rmdir()


def test_a_run_says_where_kernels_are_kept_before_one_is_made(tmp_path: Path) -> None:
    """The learner's head is compiled before vLLM is loaded."""
    code = "import os, rl_engine.learner.ranks as it; print(os.environ['TRITON_CACHE_DIR'])"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        env={**environment, "TRITON_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / ".triton" / "cache")
