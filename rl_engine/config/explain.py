"""pydantic's validation errors → one line per key: key, value, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from rl_engine.config.fields import (
    as_yaml,
    describe,
    field_at,
    leaves,
    names_of,
    section_at,
    takes_nothing,
    types_of,
    value_at,
)
from rl_engine.config.hints import key_hint, near, objective

# pydantic's error types for a value that is not a list or mapping, or a list of the wrong length.
SHAPES = ("tuple_type", "too_short", "too_long", "dict_type")


def problems_of(schema: type[BaseModel], values: Mapping[str, Any], error: ValidationError) -> list[str]:
    """Every problem with these values once, in pydantic's order; missing required keys come last, in one line."""
    lines: dict[str, None] = {}
    absent = []
    problems = error.errors(include_url=False)
    places = [problem["loc"] for problem in problems]
    for problem in problems:
        if problem["type"] == "too_short" and any(problem["loc"] == place[:-1] for place in places):
            continue  # an error about items that have errors of their own
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "missing":
            absent.append(".".join(location))
        elif problem["type"] == "extra_forbidden":
            lines |= dict.fromkeys(_unknown(schema, location, problem["input"]))
        else:
            lines[_explain(schema, values, location, problem)] = None
    if absent:
        lines[f"{', '.join(absent)}: required, and not given"] = None
    return list(lines)


def _unknown(schema: type[BaseModel], location: list[str], value: Any) -> list[str]:
    """One line per key inside an unknown key: another library's file has whole sections of them."""
    inner = leaves(value) if isinstance(value, Mapping) and value else iter(())
    keys = [(location + key.split("."), leaf) for key, leaf in inner] or [(location, value)]
    return [f"{'.'.join(key)}: no such key; {key_hint(schema, key, leaf)}" for key, leaf in keys]


def _explain(schema: type[BaseModel], values: Mapping[str, Any], location: list[str], problem: Any) -> str:
    key = ".".join(_without_types(schema, location))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key and not message.startswith(key) else message
    if problem["type"] in ("model_type", "model_attributes_type"):
        section = section_at(schema, location)
        inner = ", ".join(f"{key}.{name}" for name in section.model_fields) if section else ""
        return f"{key}: a section, not {problem['input']!r}; its keys are {inner}"
    field = _field_of(schema, location)
    info = field_at(schema, field)
    if info is not None and len(types_of(info.annotation)) > 1:
        value = value_at(values, field)
        finite = "a finite " if isinstance(value, float) and not math.isfinite(value) else ""
        return f"{field} is {value!r}: it takes {finite}{describe(info)}"
    if info is not None and key == field and problem["type"] in SHAPES:
        return f"{key}: {describe(info)}, not {problem['input']!r}: write it as {_example(info)}"
    text = f"{key}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"
    if key == "loss.name" and (how := objective(problem["input"])):
        text = text.removeprefix("loss.name: ")
        return f"loss.name is {problem['input']!r}: here that is {how} (docs/choosing.md); {text}"
    if problem["type"] == "literal_error" and info is not None:
        found = near(str(problem["input"]), names_of(info.annotation))
        return f"{text}; did you mean {found}?" if found else text
    if (
        problem["type"] == "string_type"
        and isinstance(problem["input"], bool)
        and info
        and takes_nothing(info.annotation)
    ):
        return f"{text}; give a text, or null for none"
    if problem["type"] == "string_type" and isinstance(problem["input"], int | float):
        return f"{text}; in a file write it in quotes"
    return text


def _example(info: Any) -> str:
    default = info.get_default(call_default_factory=True)
    if isinstance(default, dict):
        return "{NAME: VALUE}"
    return as_yaml(default) if isinstance(default, tuple) and default else "[VALUE, …]"


def _without_types(schema: Any, location: Sequence[str]) -> list[str]:
    """A key without the parts that pydantic appends to distinguish the alternatives of a union."""
    for index, part in enumerate(location):
        fields = getattr(schema, "model_fields", {})
        if part not in fields:
            return [*location[:index], *(part for part in location[index:] if part.isdigit())]
        schema = fields[part].annotation
    return list(location)


def _field_of(schema: type[BaseModel], location: Sequence[str]) -> str:
    """The key whose value contains this location."""
    for length in range(len(location), 0, -1):
        if field_at(schema, ".".join(location[:length])) is not None:
            return ".".join(location[:length])
    return ".".join(location)
