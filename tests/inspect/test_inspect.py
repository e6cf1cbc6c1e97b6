"""Spectra of updates, compared with the dense decomposition and with PEFT's own ΔW, and what is said about files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from typer.testing import CliRunner

from rl_engine.config import LoraConfig
from rl_engine.inspect.__main__ import ROWS, app, draw
from rl_engine.inspect.deltas import VersionSpectra, read_version
from rl_engine.inspect.figures import by_kind
from rl_engine.inspect.spectrum import Spectrum, spectrum_of_factors, spectrum_of_matrix
from rl_engine.inspect.versions import directories
from rl_engine.policy.lora.adapter import add_adapter
from rollout.adapters import MANIFEST, AdapterError, AdapterStore
from rollout.models import EMBEDDED_DIR
from rollout.peft_format import rank_and_scale
from tests.helpers.figures import assert_reads_in_a_paper


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rank", "inputs", "outputs"), [(1, 12, 7), (4, 12, 7), (9, 12, 7), (9, 7, 12)])
def test_of_factors_it_is_that_of_their_product(rank: int, inputs: int, outputs: int) -> None:
    a, b = random(rank, inputs).double(), random(outputs, rank, seed=1).double()
    values = torch.linalg.svdvals(2.5 * b @ a)[: min(rank, inputs, outputs)]
    found = spectrum_of_factors("m", a, b, 2.5)
    assert found.norm == pytest.approx(float(values[0]))
    assert found.frobenius == pytest.approx(float(values.norm()))
    assert found.stable_rank == pytest.approx(float((values**2).sum() / values[0] ** 2))
    assert found.norm_a == pytest.approx(float(torch.linalg.matrix_norm(a, 2)))
    assert found.norm_b == pytest.approx(float(torch.linalg.matrix_norm(b, 2)))
    assert found.rank == len(values)
    held = torch.cumsum(values**2, 0) / (values**2).sum()
    assert held[found.energy_rank - 1] >= 0.9
    assert found.energy_rank == 1 or held[found.energy_rank - 2] < 0.9


@pytest.mark.parametrize(
    ("values", "stable", "energy"),
    [((3, 2, 1), 14 / 9, 2), ((1, 1, 1, 1), 4.0, 4), ((10, 1, 1), 1.02, 1), ((5,), 1.0, 1)],
)
def test_a_matrix_of_known_singular_values(values: tuple[int, ...], stable: float, energy: int) -> None:
    left, right = torch.linalg.qr(random(6, 6)).Q, torch.linalg.qr(random(5, 5, seed=1)).Q
    median_over = torch.zeros(6, 5)
    median_over.diagonal()[: len(values)] = torch.tensor(values, dtype=torch.float32)
    found = spectrum_of_matrix("m", left @ median_over @ right)
    assert found.stable_rank == pytest.approx(stable, rel=1e-5)
    assert (found.energy_rank, found.rank, found.norm_a, found.norm_b) == (energy, 5, None, None)
    assert found.used == pytest.approx(energy / 5)


def test_no_update_has_no_rank() -> None:
    for found in (
        spectrum_of_factors("m", random(2, 5), torch.zeros(4, 2), 32.0),
        spectrum_of_matrix("m", torch.zeros(4, 5)),
    ):
        assert (found.norm, found.frobenius, found.stable_rank, found.energy_rank, found.used) == (0, 0, 0, 0, 0)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.q_proj = nn.Linear(8, 12, bias=False), nn.Linear(8, 6, bias=False)
        self.embed = nn.Embedding(10, 8)


def random_factors(model: nn.Module) -> None:
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_" in name:
            parameter.data = random(*parameter.shape, seed=index)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 5}},
        {"rank_pattern": {"up_proj": 2}, "use_rslora": True},
    ],
)
def test_an_adapter_has_the_update_that_peft_makes_of_it(settings: dict[str, Any], tmp_path: Path) -> None:
    targets = ["up_proj", "q_proj", "embed"]
    model = get_peft_model(Two(), PeftLoraConfig(r=3, lora_alpha=32, target_modules=targets, **settings))
    random_factors(model)
    model.save_pretrained(str(tmp_path))
    found = {spectrum.module: spectrum for spectrum in read_version(tmp_path, None).spectra}
    assert set(found) == set(targets)
    for name, spectrum in found.items():
        module: Any = model.get_submodule(f"base_model.model.{name}")
        delta = module.get_delta_weight("default").detach()
        assert spectrum.frobenius == pytest.approx(float(delta.norm()), rel=1e-5)
        assert spectrum.norm == pytest.approx(float(torch.linalg.matrix_norm(delta, 2)), rel=1e-5)


def test_each_expert_of_a_mixture_has_its_own(tmp_path: Path) -> None:
    model_config = Qwen3MoeConfig(
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
        vocab_size=32,
    )
    lora = LoraConfig(rank=6, expert_rank=3)
    model, _ = add_adapter(AutoModelForCausalLM.from_config(model_config, dtype=torch.float32), lora, seed=0)
    random_factors(model)
    model.save_pretrained(str(tmp_path))
    found = read_version(tmp_path, None, only="experts").spectra
    wrappers: dict[str, Any] = {
        "base_layer" if "base_layer" in path else "experts": module
        for path, module in model.named_modules()
        if hasattr(module, "parameter_name")
    }
    assert len(found) == 8
    assert {spectrum.rank for spectrum in found} == {3}
    for kind, spectra in by_kind(found).items():
        deltas = wrappers[kind].get_delta_weight("default").detach()
        for spectrum, delta in zip(spectra, deltas, strict=True):
            assert spectrum.frobenius == pytest.approx(float(delta.norm()), rel=1e-5)
            assert spectrum.norm == pytest.approx(float(torch.linalg.matrix_norm(delta, 2)), rel=1e-5)


def test_the_scale_follows_the_patterns() -> None:
    peft_config = {"r": 4, "lora_alpha": 32, "rank_pattern": {"layers.0.mlp": 8, "o_proj": 2}, "alpha_pattern": {}}
    assert rank_and_scale(peft_config, "model.layers.1.mlp") == (4, 8.0)
    assert rank_and_scale(peft_config, "model.layers.0.mlp") == (8, 4.0)
    assert rank_and_scale(peft_config, "model.layers.0.xo_proj") == (4, 8.0)
    assert rank_and_scale({**peft_config, "use_rslora": True}, "a.o_proj") == (2, 32 / 2**0.5)


def publish(store: AdapterStore, version: int, tensors: dict[str, Tensor], **manifest: Any) -> None:
    """Publish a version as a run with `method: full` does."""

    def write(directory: Path) -> None:
        save_file(tensors, directory / "model.safetensors")
        (directory / "config.json").write_text("{}")

    store.publish(version, write, {"kind": "full", "rank": 0, "weights": "model.safetensors", **manifest})


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    store = AdapterStore(tmp_path / "run" / "adapters")
    base = {"model.layers.0.mlp.up_proj.weight": random(6, 4), "model.norm.weight": torch.ones(4)}
    for version in range(3):
        moved = {name: (tensor + version).bfloat16() for name, tensor in base.items()}
        publish(store, version, moved)
    return tmp_path / "run"


def test_a_whole_model_is_compared_with_version_0_of_its_run(full_run: Path) -> None:
    versions = [read_version(path, None) for path in directories(full_run)]
    assert [version.path.name for version in versions] == ["v000000", "v000001", "v000002"]
    for number, version in enumerate(versions):
        (spectrum,) = version.spectra
        assert spectrum.module == "model.layers.0.mlp.up_proj"
        # All entries moved by the same amount, up to bfloat16's rounding: one direction.
        assert spectrum.frobenius == pytest.approx(number * 24**0.5, rel=0.01)
        assert spectrum.energy_rank == (number > 0)
        assert (spectrum.rank, spectrum.norm_a) == (4, None)


def test_a_whole_model_without_its_base_asks_for_it(full_run: Path) -> None:
    store = AdapterStore(full_run / "adapters")
    base = full_run / "base"
    store.path_of(0).rename(base)
    with pytest.raises(FileNotFoundError, match="--base"):
        read_version(store.path_of(2), None)
    (spectrum,) = read_version(store.path_of(2), base).spectra
    assert spectrum.frobenius == pytest.approx(2 * 24**0.5, rel=0.01)
    publish(store, 3, {"model.layers.0.mlp.up_proj.weight": torch.zeros(6, 4)}, base_model=str(base))
    (named,) = read_version(store.path_of(3), None).spectra
    assert named.frobenius == pytest.approx(float(random(6, 4).norm()), rel=0.01)


def adapter(directory: Path, b: Tensor, **peft_config: Any) -> Path:
    """Write an adapter of one module, with A = (1, 0, 0)."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2, **peft_config})
    )
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    tensors = {f"{prefix}.lora_A.weight": torch.eye(1, 3), f"{prefix}.lora_B.weight": b}
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_the_command_shows_and_writes_what_it_found(tmp_path: Path) -> None:
    """It shows versions, kinds of layers, and each module with `--modules`."""
    paths = [adapter(tmp_path / f"v{number:06d}", torch.full((4, 1), float(number))) for number in range(2 * ROWS + 1)]
    code, output = run(*paths, "--plot", tmp_path / "made" / "s.png", "--output", tmp_path / "s.json")
    assert code == 0, output
    rows = [line.split() for line in output.splitlines() if line.startswith("v0")]
    assert [row[0] for row in rows[:-1]] == [f"v{number:06d}" for number in range(0, 2 * ROWS + 1, 3)]
    # ‖A‖ = 1, ‖B‖ = 2 · number, ‖ΔW‖ = 2 ‖B‖.
    assert rows[1] == ["v000003", "1", "1", "1", "6", "12", "12", "1", "1", "1"]
    kind = next(line.split() for line in output.splitlines() if line.startswith("up_proj"))
    assert kind == ["up_proj", "1", "1", "1", "120", "240", "240", "1", "1", "1"]
    written = json.loads((tmp_path / "s.json").read_text())
    assert [version["modules"][0]["norm_b"] for version in written[:3]] == [0, 2, 4]
    assert (tmp_path / "made" / "s.png").read_bytes().startswith(b"\x89PNG")
    _, output = run(paths[1], "--modules")
    assert "model.layers.0.mlp.up_proj" in output


def test_what_nobody_could_read_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert app([str(adapter(tmp_path / "a", torch.ones(4, 1)))], standalone_mode=False) == 1


@pytest.mark.parametrize(
    ("peft_config", "message"), [({"use_dora": True}, "use_dora=True"), ({"peft_type": "LOHA"}, "peft_type is 'LOHA'")]
)
def test_what_is_not_a_product_of_two_factors_is_refused(
    peft_config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    code, output = run(adapter(tmp_path / "a", torch.ones(4, 1), **peft_config))
    assert (code, message in output) == (2, True)


def test_damaged_absent_and_unmatched_are_reported(tmp_path: Path, full_run: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not an adapter, a model or a run"):
        directories(tmp_path)
    (tmp_path / "best").symlink_to("v000001")
    with pytest.raises(FileNotFoundError, match="best points to v000001, which is missing; no other version is there"):
        directories(tmp_path / "best")
    fine = adapter(tmp_path / "fine", torch.ones(4, 1))
    with pytest.raises(AdapterError, match="'q_proj'"):
        read_version(fine, None, only="q_proj")
    told = CliRunner().invoke(app, [str(fine), "--base", "embedded"]).output
    assert told.startswith("error: --base is embedded, and has no effect: an adapter is an update by itself")
    damaged = full_run / "adapters" / "v000001"
    assert (damaged / MANIFEST).is_file()
    save_file({"other": torch.zeros(2, 2)}, damaged / "model.safetensors")
    with pytest.raises(AdapterError, match="sha256"):
        read_version(damaged, None)


def whole(directory: Path, **tensors: Tensor) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    save_file(tensors, directory / "model.safetensors")
    return directory


def cut(model: Path) -> Path:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    return model


def test_models_that_do_not_compare_are_one_line(tmp_path: Path) -> None:
    base = whole(tmp_path / "base", up=random(6, 4))
    for model, words in (
        (whole(tmp_path / "grown", up=random(8, 4)), "grown and [6, 4] in "),
        (whole(tmp_path / "diverged", up=random(6, 4) / 0), "has infinite or NaN values, and so no spectrum"),
        (cut(whole(tmp_path / "cut", up=random(6, 4))), "model.safetensors is damaged: "),
    ):
        code, said = run(model, "--base", base)
        assert (code, said.count("\nerror: ")) == (2, 1), said
        assert words in said
    code, said = run(base, "--base", cut(whole(tmp_path / "cut base", up=random(6, 4))))
    assert (code, "cut base/model.safetensors is damaged: " in said) == (2, True)
    code, said = run(adapter(tmp_path / "nan", torch.full((4, 1), float("nan"))))
    assert (code, f"lora_B.weight in {tmp_path / 'nan'} has infinite or NaN values" in said) == (2, True)


def test_the_embedded_model_is_a_base_by_its_name() -> None:
    code, said = run(EMBEDDED_DIR, "--base", "embedded", "--only", "layers.0.mlp")
    assert code == 0, said
    code, said = run(EMBEDDED_DIR, "--base", "embeded")
    assert (code, "error: embeded has no safetensors files" in said) == (2, True), said


def test_modules_of_all_layers_and_experts_are_of_a_kind() -> None:
    def named(module: str) -> Spectrum:
        return spectrum_of_matrix(module, torch.eye(2))

    names = ["layers.0.mlp.up_proj", "layers.1.mlp.up_proj", "layers.0.mlp.experts.3"]
    assert {kind: len(spectra) for kind, spectra in by_kind([named(name) for name in names]).items()} == {
        "up_proj": 2,
        "experts": 1,
    }


@pytest.mark.parametrize("factors", [True, False], ids=["adapter", "whole model"])
def test_the_figure_has_no_shape_of_an_update_of_nothing(factors: bool, tmp_path: Path) -> None:
    """A stable rank that rises from 0 to 1 at rank 1 would suggest something that has not happened."""

    def version(number: int) -> VersionSpectra:
        spectra = tuple(
            Spectrum(
                module=f"model.layers.0.{module}",
                rank=1,
                norm_a=0.6 if factors else None,
                norm_b=0.1 * number if factors else None,
                norm=1.0 * number,
                frobenius=1.0 * number,
                stable_rank=1.0 if number else 0.0,
                energy_rank=1 if number else 0,
            )
            for module in ("self_attn.q_proj", "mlp.up_proj")
        )
        return VersionSpectra(path=tmp_path / f"v{number:06d}", spectra=spectra)

    figure = draw([version(number) for number in range(3)], tmp_path / "drawn.png")
    factor_panel, update, stable, used = figure.axes
    assert [len(panel.get_lines()) for panel in figure.axes] == [4 if factors else 0, 2, 2, 2]
    assert all(
        np.asarray(line.get_xdata()).tolist() == [1, 2] for panel in (stable, used) for line in panel.get_lines()
    )
    assert all(np.asarray(line.get_xdata()).tolist() == [0, 1, 2] for line in update.get_lines())
    assert factor_panel.get_title("left").startswith("‖A‖₂")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["attention", "mlp"]
    assert_reads_in_a_paper(figure)
