"""Configuration models → docs/configuration.md: `python -m rl_engine.config.reference > docs/configuration.md`."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rl_engine.config.run import Config
from rl_engine.config.sft import SftConfig

HEADER = """# Configuration

Every key, its type and range, its default and its meaning. Made from the code by
`python -m rl_engine.config.reference > docs/configuration.md`; a test keeps it up to date.

## `python -m rl_engine.train`
"""
SUPERVISED = """
## `python -m rl_engine.sft`
These, and of the keys above: {same}.

"""
TABLE = """| key | type | default | meaning |
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
            default = "required" if info.is_required() else f"`{_as_yaml(info.get_default(call_default_factory=True))}`"
            meaning = (info.description or "").replace("|", "\\|")
            yield f"| `{prefix}{name}` | {_type(annotation, info)} | {default} | {meaning} |"


def _as_yaml(value: Any) -> str:
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
    return " ".join([_type_name(annotation), ", ".join(limits)]).strip()


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{_as_yaml(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in arguments if part is not types.NoneType)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "dict": "mapping"}
    name = str(annotation.__name__)
    return names.get(name, name)


def reference() -> str:
    """The page; its table of the supervised command leaves out what is the same to the letter."""
    shared = [*rows(Config)]
    supervised = [*rows(SftConfig)]
    own = [row for row in supervised if row not in shared]
    same = [row for row in supervised if row in shared]
    names = ", ".join(row.split(" | ")[0].removeprefix("| ") for row in same)
    tables = (HEADER, TABLE, "\n".join(shared), "\n", SUPERVISED.format(same=names), TABLE, "\n".join(own), "\n")
    return "".join(tables)


if __name__ == "__main__":
    sys.stdout.write(reference())
