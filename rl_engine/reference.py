"""Configuration models → docs/configuration.md: `python -m rl_engine.reference > docs/configuration.md`."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rl_engine.config import Config

HEADER = """# Configuration

Every key, its type and range, its default and its meaning. Made from the code by
`python -m rl_engine.reference > docs/configuration.md`; a test keeps it up to date.

| key | type | default | meaning |
|---|---|---|---|
"""


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One table row a key, sections flattened."""
    for name, info in model.model_fields.items():
        annotation: Any = info.annotation
        plain = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
        if plain and issubclass(annotation, BaseModel):
            yield from rows(annotation, f"{prefix}{name}.")
        else:
            default = "required" if info.is_required() else f"`{_written(info.get_default(call_default_factory=True))}`"
            meaning = (info.description or "").replace("|", "\\|")
            yield f"| `{prefix}{name}` | {_type(annotation, info)} | {default} | {meaning} |"


def _written(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value).replace("\n", " ")


def _type(annotation: Any, info: FieldInfo) -> str:
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(entry, name):g}"
        for entry in info.metadata
        for name, sign in bounds.items()
        if getattr(entry, name, None) is not None
    ]
    return " ".join([_name(annotation), ", ".join(limits)]).strip()


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{_written(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(part) for part in arguments if part is not types.NoneType)
    if origin is typing.Annotated:
        return _name(arguments[0])
    if origin is tuple:
        return f"list of {_name(arguments[0])}"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "dict": "mapping"}
    name = str(annotation.__name__)
    return names.get(name, name)


def reference() -> str:
    return HEADER + "\n".join(rows(Config)) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
