"""What a report says about the adapters themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rl_engine.report.spectra import VERSIONS, evenly, with_spectra
from rollout.adapters import AdapterStore


def publish(run: Path, version: int, strength: float) -> None:
    """Publish an adapter of rank 1 and scale 2: A = (3, 4), B = strength · (1, 0, 0)."""

    def write(directory: Path) -> None:
        tensors = {
            "base_model.model.up.lora_A.weight": torch.tensor([[3.0, 4.0]]),
            "base_model.model.up.lora_B.weight": torch.tensor([[strength], [0.0], [0.0]]),
        }
        save_file(tensors, directory / "adapter_model.safetensors")
        facts = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["up"]}
        (directory / "adapter_config.json").write_text(json.dumps(facts))

    AdapterStore(run / "adapters").publish(version, write, {"kind": "lora", "rank": 1})


def test_a_line_holds_the_figures_of_the_version_it_published(tmp_path: Path) -> None:
    publish(tmp_path, 0, 0.0)
    publish(tmp_path, 1, 0.5)
    # Step 2 had no signal, so version 1 stayed.
    lines = tuple(
        {"step": float(step), "adapter/version": float(version)} for step, version in ((0, 0), (1, 1), (2, 1))
    )
    (start, first, second), damaged = with_spectra(tmp_path, lines)
    assert damaged == []
    assert start["inside/norm_a"] == pytest.approx(5)
    assert start["inside/norm_update"] == 0
    # A matrix of zeros has no stable rank: a curve from 0 to 1 would look like something learned.
    assert "inside/stable_rank" not in start
    assert first["inside/norm_b"] == pytest.approx(0.5)
    assert first["inside/norm_update"] == pytest.approx(2 * 5 * 0.5)
    assert first["inside/stable_rank"] == pytest.approx(1)
    assert first["inside/used_frac"] == 1
    assert second == lines[2]


def test_a_run_without_adapters_has_its_own_lines(tmp_path: Path) -> None:
    lines = ({"step": 0.0, "adapter/version": 0.0},)
    assert with_spectra(tmp_path, lines) == (lines, [])


def test_an_adapter_of_no_numbers_is_named_and_the_rest_drawn(tmp_path: Path) -> None:
    """An adapter that diverged or was damaged is what the user opens the page for."""
    publish(tmp_path, 0, 0.5)
    publish(tmp_path, 1, float("nan"))
    lines = tuple({"step": float(version), "adapter/version": float(version)} for version in range(2))
    (first, second), damaged = with_spectra(tmp_path, lines)
    assert "inside/norm_b" in first
    assert second == lines[1]
    (line,) = damaged
    assert "v000001 has infinite or NaN values, and so no spectrum" in line


def test_many_versions_are_thinned_with_both_ends() -> None:
    assert evenly([1, 2, 3], VERSIONS) == [1, 2, 3]
    thinned = evenly(list(range(101)), 5)
    assert thinned == [0, 25, 50, 75, 100]
