"""Schema → its keys, and a description of the values that each accepts."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
WORDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "dict": "mapping"}


def is_section(annotation: Any) -> bool:
    """Whether a key of this type has keys of its own."""
    # isinstance takes tuple[str, …] for a class, and issubclass then fails on it.
    plain = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
    return plain and issubclass(annotation, BaseModel)


def fields(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key that holds a value."""
    for name, info in schema.model_fields.items():
        if is_section(info.annotation):
            section: Any = info.annotation
            yield from fields(section, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def section_at(schema: type[BaseModel], parts: typing.Sequence[str]) -> type[BaseModel] | None:
    """The section at a path, or the schema itself for an empty path; None if there is no such section."""
    for part in parts:
        info = schema.model_fields.get(part)
        if info is None or not is_section(info.annotation):
            return None
        section: Any = info.annotation
        schema = section
    return schema


def field_at(schema: type[BaseModel], key: str) -> FieldInfo | None:
    """The field of a key that holds a value; None for sections, keys inside a value, and unknown keys."""
    *path, name = key.split(".")
    section = section_at(schema, path)
    info = section.model_fields.get(name) if section else None
    return None if info is None or is_section(info.annotation) else info


def is_setting(schema: type[BaseModel], key: str) -> bool:
    """Whether the key can be set: it holds a value, or lies inside one that is a mapping."""
    parts = key.split(".")
    return any(field_at(schema, ".".join(parts[:length])) is not None for length in range(1, len(parts) + 1))


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested mappings; an empty mapping is a leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_at(values: Any, key: str, default: Any = None) -> Any:
    """The value of a dotted key in nested mappings, or `default` if any level is missing."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return default
        values = values[part]
    return values


def types_of(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, without None; otherwise the type itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(part for part in typing.get_args(annotation) if part is not types.NoneType)
    return (annotation,)


def takes_text_alone(annotation: Any) -> bool:
    """Whether it accepts no scalars but text, so that 1e5 on the command line is a name, not a number."""
    return all(part is str or item_of_list(part) is str or names_of(part) for part in types_of(annotation))


def takes_nothing(annotation: Any) -> bool:
    """Whether it accepts null."""
    return types.NoneType in typing.get_args(annotation)


def takes_number(annotation: Any) -> bool:
    return any(getattr(part, "__origin__", part) in (int, float) for part in types_of(annotation))


def names_of(annotation: Any) -> tuple[str, ...]:
    """The values of a key that accepts one of several names; empty for other keys."""
    values = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    return values if all(isinstance(value, str) for value in values) else ()


def item_of_list(annotation: Any) -> Any:
    """The item type of a key that accepts only lists, of any length; None for other keys."""
    (only, *others) = types_of(annotation)
    arguments = typing.get_args(only)
    if others or typing.get_origin(only) is not tuple or arguments[1:] != (Ellipsis,):
        return None
    return arguments[0]


def as_yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value).replace("\n", " ")


def describe(info: FieldInfo) -> str:
    """Type and range: `whole number ≥ 1, ≤ 512`."""
    return " ".join([_name(info.annotation), _limits(info.metadata)]).strip()


def _limits(metadata: typing.Iterable[Any]) -> str:
    entries = [inner for entry in metadata for inner in getattr(entry, "metadata", [entry])]
    return ", ".join(
        f"{sign} {bound if isinstance(bound, int) else format(bound, 'g')}"
        for entry in entries
        for name, sign in BOUNDS.items()
        if (bound := getattr(entry, name, None)) is not None
    )


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{as_yaml(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(part) for part in types_of(annotation))
    if origin is typing.Annotated:
        return " ".join([_name(arguments[0]), _limits(arguments[1:])]).strip()
    if origin is tuple:
        return f"list of {_name(arguments[0])}"
    name = "dict" if is_section(annotation) else str(annotation.__name__)
    return WORDS.get(name, name)
