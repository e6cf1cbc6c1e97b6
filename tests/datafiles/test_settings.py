"""YAML as people write it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from datafiles.settings import read_settings, read_yaml, write_yaml

# Values that YAML 1.1 reads differently from what is written, or PyYAML differently from YAML 1.1.
WRITTEN: dict[str, Any] = {
    "010": "010",
    "0123456789": "0123456789",
    "-010": "-010",
    "08": "08",
    "010.5": 10.5,
    "1:30": "1:30",
    "190:20:30.15": "190:20:30.15",
    "1_000": 1000,
    "1_000.5": 1000.5,
    "0x1F": 31,
    "-0b11": -3,
    "0o17": "0o17",
    "1e-4": 1e-4,
    "1E4": 1e4,
    "+.5e1": 5.0,
    "1.": 1.0,
    "-.inf": -math.inf,
    "2020-01-01": "2020-01-01",
    "=": "=",
    "y": "y",
    "yes": True,
    "Off": False,
    "oN": "oN",
    "~": None,
    "١٢": "١٢",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_what_is_written_is_what_is_meant(text: str) -> None:
    value = read_yaml(f"key: {text}")["key"]
    assert (value, type(value)) == (WRITTEN[text], type(WRITTEN[text]))
    assert read_yaml(text) == value


def test_keys_are_what_is_written() -> None:
    assert read_yaml("{on: 1, 010: 2, 8: 3, ~: 4, 1e3: 5}") == {"on": 1, "010": 2, "8": 3, "~": 4, "1e3": 5}


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "{x: {8: 1, 8: 2}}", "'a': 1\na: 2", "- {on: 1, on: 1}"])
def test_a_key_given_twice_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="is given twice"):
        read_yaml(text)


def test_a_mapping_may_begin_from_another() -> None:
    text = "d: &d {a: 1, b: 2}\ne: &e {<<: *d, b: 3}\nf: {<<: [*e, *d], a: 5}"
    assert read_yaml(text)["f"] == {"a": 5, "b": 3}


@pytest.mark.parametrize(
    "text",
    [
        *("a: &x [*x]", "a: &x {b: *x}", "a: !!python/name:os.system ''", "a: !!int no", "a: !!bool maybe"),
        *("a: !!set {b}", "a: !!timestamp 2001-01-01", "a: !!binary aGVsbG8=", "a: !!omap [b: 1]"),
    ],
)
def test_what_is_no_plain_value_is_refused(text: str) -> None:
    with pytest.raises((yaml.YAMLError, ValueError)):
        read_yaml(text)


@pytest.mark.parametrize("text", ["🙂 é \n\t", "𝔽", "\x7f\ufffe"])
def test_json_is_yaml_beyond_its_first_plane_too(text: str) -> None:
    """JSON spells a character beyond U+FFFF as two escapes, which YAML reads as two surrogates that no file can
    hold."""
    assert read_yaml(json.dumps({text: text})) == {text: text}


def test_a_damaged_file_of_settings_is_named_in_a_line(tmp_path: Path) -> None:
    for text in ("a: [1\n", "- 1\n", "a: 1\na: 2\n", ""):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml is damaged: [^\n]*$"):
            read_settings(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("optim: {lr: 1e-4}\n")
    assert read_settings(tmp_path / "config.yaml") == {"optim": {"lr": 1e-4}}


def test_what_is_written_is_read_again_by_either_version() -> None:
    tree = {"texts": [*WRITTEN, "", "a\nb", "é"], "values": [10, 1e-5, 1e300, True, None, [], {}]}
    assert read_yaml(write_yaml(tree)) == yaml.safe_load(write_yaml(tree)) == tree
