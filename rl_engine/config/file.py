"""YAML file and overrides → a checked, frozen configuration. Imports neither torch nor vllm."""

from __future__ import annotations

import difflib
import io
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from pydantic import BaseModel, ValidationError

from rewards.workers.processes import SECRET
from rollout.text_files import TextFileError, read_text

CONFIGS = Path(__file__).parents[2] / "configs"
S = TypeVar("S", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be run; the text says which key, which value and what is allowed."""


def _variable(name: str, *default: str | None) -> str | None:
    """What `${oc.env:NAME}` stands for. The resolved values are kept, shown and pushed: never a secret."""
    if SECRET.search(name):
        raise ConfigError(f"{name} looks like a secret, and config.yaml is no place for one: read it where it is used")
    value: str | None = oc.env(name, *default)
    return value


OmegaConf.register_resolver("oc.env", _variable, replace=True)


def find_config(name: str) -> Path:
    """The file of that path, or else of that name among the shipped configurations."""
    for candidate in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = sorted(path.name for path in CONFIGS.glob("*.yaml"))
    near = difflib.get_close_matches(name, shipped, n=1, cutoff=0)
    raise ConfigError(f"no configuration {name!r}: not a file, and not one of {', '.join(shipped)}; nearest: {near[0]}")


def read_config(schema: type[S], name: str, overrides: Sequence[str] = ()) -> S:
    """Read a configuration file, apply `key.sub=value` overrides in turn, and check the whole.

    `output_dir` is `runs/<file name>` where neither gives one.
    Raises `ConfigError` with every problem found.
    """
    path = find_config(name)
    try:
        tree: Any = OmegaConf.load(io.StringIO(read_text(path)))
        for override in overrides:
            if "=" not in override:
                raise ConfigError(f"{override!r} is not an override: write key.sub=value")
            tree = OmegaConf.merge(tree, OmegaConf.from_dotlist([override]))
        values = OmegaConf.to_container(tree, resolve=True)
    except TextFileError as error:
        raise ConfigError(str(error)) from error
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values, not {type(values).__name__}")
    values.setdefault("output_dir", f"runs/{path.stem}")
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"{path}:\n" + "\n".join(f"  {_explain(schema, problem)}" for problem in error.errors())
        ) from error


def _explain(schema: type[BaseModel], problem: Any) -> str:
    """One line for one problem: key, value, what is allowed."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key; did you mean {_nearest_key(schema, location)}?"
    if problem["type"] == "missing":
        return f"{key}: required, and not given"
    key = ".".join(_without_types(schema, location))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key and not message.startswith(key) else message
    return f"{key}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def _without_types(schema: Any, location: list[str]) -> list[str]:
    """A key without what pydantic appends to tell the alternatives of a union apart."""
    for index, part in enumerate(location):
        fields = getattr(schema, "model_fields", {})
        if part not in fields:
            return location[:index] + [part for part in location[index:] if part.isdigit()]
        schema = fields[part].annotation
    return location


def _nearest_key(schema: type[BaseModel], location: list[str]) -> str:
    """The existing key most like an unknown one: one of the same name elsewhere, else beside it, else anywhere."""
    everywhere = list(_keys(schema))
    for key in everywhere:
        if key.split(".")[-1] == location[-1]:
            return key
    wanted = ".".join(location)
    siblings = [key for key in everywhere if key.split(".")[:-1] == location[:-1]]
    near = difflib.get_close_matches(wanted, siblings, n=1) or difflib.get_close_matches(
        wanted, everywhere, n=1, cutoff=0
    )
    return near[0]


def _keys(model: type[BaseModel], prefix: str = "") -> typing.Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        annotation: Any = info.annotation
        # tuple[str, …] passes for a class until issubclass is asked.
        plain = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
        if plain and issubclass(annotation, BaseModel):
            yield from _keys(annotation, f"{prefix}{name}.")
