"""YAML file and overrides → a validated, frozen configuration. Imports neither torch nor vllm."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from pydantic import ValidationError

from datafiles.settings import read_yaml, write_yaml
from datafiles.text import TextFileError, first_line, read_text
from rewards.workers.processes import SECRET
from rl_engine.config.effects import Idle, idle_keys
from rl_engine.config.explain import problems_of
from rl_engine.config.fields import (
    as_yaml,
    field_at,
    is_section,
    item_of_list,
    leaves,
    takes_nothing,
    takes_number,
    takes_text_alone,
    types_of,
    value_at,
)
from rl_engine.config.hints import listed, near
from rl_engine.config.other_trainers import SIGNS
from rollout.config import Section
from rollout.files.ownership import MARKER, marked_place

CONFIGS = Path(__file__).parents[2] / "configs"
RUN_CONFIG = "config.yaml"
"""File name of the configuration in a run's directory."""
# Keys whose text may contain commas without becoming a list.
FREE_TEXT = frozenset({"sampling.stop"})
# Keys whose `~` is expanded only when the file is opened, so that a resumed run sees the value it began with.
AS_WRITTEN = frozenset({*FREE_TEXT, "model.name", "lora.start_from"})

# `rank:3`, which YAML takes for a text; not the `http://` of an address.
UNSPACED = re.compile(r"\s*[\w.-]+:[^\s/\\]")
# A section of TOML.
TABLE = re.compile(r"^\[[\w.]+\]\s*$", re.MULTILINE)
TOML = "a [table] as in TOML; a configuration is YAML, which has  table:  and its keys indented below it"

# Values that are names chosen by the user, who may call an arm `none`.
OWN_NAMES = frozenset({"reference"})


class ConfigError(ValueError):
    """A configuration that cannot be run; the message gives key, value and what is allowed."""


class CommandConfig(Section):
    """The whole configuration of one command."""

    module: ClassVar[str]
    """The command, a key of `SIGNS`: `python -m MODULE`."""

    def to_yaml(self) -> str:
        return write_yaml(self.model_dump(mode="json"))

    def with_values(self, section: str, **values: Any) -> Self:
        """A copy with other values in one section: `config.with_values("optim", lr=1e-5)`. They are not validated."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})


S = TypeVar("S", bound=CommandConfig)


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings that were given in one place: a file, or a command line, which overrides the file."""

    place: str
    values: dict[str, Any]

    def gives(self, schema: type[CommandConfig], key: str) -> bool:
        """Whether it sets the key or a part of its value."""
        return any(f"{given}.".startswith(f"{key}.") for given, _ in leaves(self.values))


def _variable(name: str, *default: Any) -> Any:
    """The value of `${oc.env:NAME}`. Secrets are refused, since resolved values are stored, shown and pushed."""
    if SECRET.search(name):
        raise ConfigError(f"{name} looks like a secret, which must not end up in config.yaml: read it where it is used")
    return oc.env(name, *default)


OmegaConf.register_resolver("oc.env", _variable, replace=True)


def shipped(module: str) -> list[str]:
    """The shipped configurations for a command, without embedded.yaml, whose recipe has its own command."""
    kinds = {"rl_engine.sweep": "sweep_", "rl_engine.sft": "sft_"}
    names = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "embedded.yaml")
    own = kinds.get(module)
    return [name for name in names if (name.startswith(own) if own else not name.startswith((*kinds.values(),)))]


def find_config(name: str, module: str) -> Path:
    """The file at this path, or else the shipped configuration of this name. `module`: the command it is for."""
    if not name.strip():  # `--config "$CONFIG"`, with a variable that is unset
        raise ConfigError("--config is empty: give a YAML file, or the name of a shipped configuration")
    for candidate in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    if Path(name).is_dir():
        inside = sorted(str(path) for path in Path(name).glob("*.y*ml"))
        remedy = f": name a file in it, {listed(inside)}" if inside else " without a YAML file"
        raise ConfigError(f"--config {name} is a directory{remedy}")
    found = near(Path(name).stem, sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    if found is None and not Path(name).parent.is_dir():
        raise ConfigError(f"no configuration {name!r}: there is no directory {Path(name).parent}")
    hint = f"did you mean {found}.yaml?" if found else f"shipped are {', '.join(shipped(module))}"
    raise ConfigError(f"no configuration {name!r}, neither a file nor a shipped one; {hint}")


def read_config(schema: type[S], name: str, overrides: Sequence[str] = (), *, place: str = "command line") -> S:
    """Read a configuration file, apply `key.sub=value` overrides in order, and validate the result.

    `output_dir` defaults to `runs/<file name>`. For a run's own config.yaml it is the directory of that file, unless an
    override or an edit sets another. `place` is where the overrides were given, for messages.
    Raises `ConfigError` with every problem found.
    """
    return resolve(schema, name, (place, overrides))[0]


def resolve(schema: type[S], name: str, *settings: tuple[str, Sequence[str]]) -> tuple[S, tuple[str, ...]]:
    """Apply layers of overrides, each (place, overrides), to a file. Returns the configuration and the dropped keys.

    A key without effect is an error, unless a later layer made it ineffective, as `method=full` does for a file that
    sets a rank. Then the key is dropped, as if it had not been set.
    """
    path = find_config(name, schema.module)
    layers = [Layer(str(path), _read_file(path))]
    whole = layers[0].values
    for place, overrides in settings:
        layers.append(Layer(place, {}))
        for override in overrides:
            given = _parse(schema, place, override, whole)
            whole = merged(whole, given)
            layers[-1] = Layer(place, merged(layers[-1].values, given))
    values = _resolved(layers, whole)
    values.setdefault("output_dir", f"runs/{path.stem}")
    overridden = any(layer.gives(schema, "output_dir") for layer in layers[1:])
    own = None if overridden else _run_around(path, str(values["output_dir"]))
    if own is not None and own.resolve() != Path(str(values["output_dir"])).resolve():
        values["output_dir"] = str(own)
    values = as_intended(schema, values)
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        _check_kind(schema, path, layers[0].values)
        raise ConfigError(_grouped_by_place(schema, layers, problems_of(schema, values, error))) from error
    dropped = _drop_idle(schema, layers, values, list(idle_keys(config)))
    return (schema.model_validate(values) if dropped else config), dropped


def _run_around(path: Path, stated: str) -> Path | None:
    """The run directory if the file is a run's own config.yaml. It overrides the recorded `output_dir`, since the run
    may have been moved or copied since, or be seen from another working directory. None if the `output_dir` that the
    file states was edited: then that directory is meant."""
    own = path.absolute().parent
    if path.name != RUN_CONFIG or not (own / MARKER).is_file():
        return None
    return own if marked_place(own) in (stated, None) else None


def _drop_idle(
    schema: type[CommandConfig], layers: Sequence[Layer], values: dict[str, Any], idle: Sequence[Idle]
) -> tuple[str, ...]:
    """Remove keys that a later layer made ineffective. Raises `ConfigError` for keys that never had an effect."""
    dropped, refused = [], []
    for one in idle:
        last = max((index for index, layer in enumerate(layers) if layer.gives(schema, one.key)), default=0)
        if any(layer.gives(schema, key) for layer in layers[last + 1 :] for key in one.depends_on):
            dropped.append(one.key)
            *path, name = one.key.split(".")
            section = values
            for part in path:
                section = section[part]
            del section[name]
        else:
            refused.append((layers[last].place, one.line))
    if refused:
        raise ConfigError(_headed(refused))
    return tuple(dropped)


def _read_file(path: Path) -> dict[str, Any]:
    """The file's values as written, with interpolations unresolved."""
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except TextFileError as error:
        raise ConfigError(str(error)) from error
    try:
        tree = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_yaml_problem(error, text)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if tree in (None, {}):
        raise ConfigError(f"{path}: the file is empty")
    if isinstance(tree, str) and TABLE.search(text):
        raise ConfigError(f"{path}: {TOML}")
    if isinstance(tree, str):  # `seed = 3`
        tree = {tree: None}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values, not {text.strip()!r:.40}")
    return tree


def _resolved(layers: Sequence[Layer], whole: dict[str, Any]) -> dict[str, Any]:
    """The merged values with `${…}` resolved. Raises `ConfigError` under the first layer that cannot be resolved."""
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.create(whole), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        if len(layers) > 1:
            _resolved(layers[:-1], merged(*(layer.values for layer in layers[:-1])))
        problem = re.sub(r"^\w+ raised while resolving interpolation: ", "", first_line(error)).strip('"')
        name = next(iter(re.findall(r"^Interpolation key '(\w+)' not found", problem)), "")
        if name in os.environ:
            problem += f"; the variable of the environment is ${{oc.env:{name}}}"
        raise ConfigError(f"{layers[-1].place}: {problem}") from error
    resolved: dict[str, Any] = tree
    return resolved


def _yaml_problem(error: yaml.YAMLError, text: str) -> str:
    """Location and cause of a YAML error: `, line 3: what is wrong there`."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return f": {first_line(error)}"
    lines = [*text.splitlines(), ""]
    if "expected ':'" in problem or "mapping values" in problem:
        for number in (mark.line, mark.line - 1):  # YAML may notice it on the next line
            if number >= 0 and UNSPACED.match(lines[number]):
                return f", line {number + 1}: {lines[number].strip()} has no space after its colon"
    line = lines[mark.line]
    if "\t" in line and "cannot start any token" in problem:
        problem = "a tab, where YAML takes spaces alone"
    elif TABLE.search(text):
        problem = TOML
    elif "${" in line and "expected ',' or" in problem:
        problem = 'between { } or [ ] a ${…} is written in quotes, "${…}"'
    return f", line {mark.line + 1}: {problem}"


def _parse(schema: type[CommandConfig], place: str, override: str, below: dict[str, Any]) -> dict[str, Any]:
    """`key.sub=value` as nested mappings. `below` holds the values that it will be merged into."""
    key, equals, text = (part.strip() for part in override.partition("="))
    named = key.lstrip("-+~")
    if not equals or not named:
        hint = f", {named}=VALUE" if field_at(schema, named) is not None else ""
        raise ConfigError(f"{place}: {override!r} is not a setting: write key.sub=value, without spaces{hint}")
    if named != key:
        raise ConfigError(f"{place}: {override!r}: settings are written plainly, {named}={text}")
    parts = key.split(".")
    for length in range(1, len(parts)):
        whole = ".".join(parts[:length])
        if isinstance(value_at(below, whole), list):
            raise ConfigError(f"{place}: {key}: {whole} is a list: give the whole of it, {whole}=[…]")
    if "[" in key or not all(parts):
        whole = key.partition("[")[0]
        raise ConfigError(f"{place}: {key!r} is not a key: write key.sub=value, and a list whole, {whole}=[…]")
    value = _value(schema, place, key, text)
    for part in reversed(parts):
        value = {part: value}
    tree: dict[str, Any] = value
    return tree


def _value(schema: type[CommandConfig], place: str, key: str, text: str) -> Any:
    """Parse the text as YAML, or keep it as it is if the key accepts only text. For a key that accepts text or null, a
    boolean stays one and is rejected later: `log.wandb=false` names no project."""
    info = field_at(schema, key)
    annotation = None if info is None else info.annotation
    try:
        value = read_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        if info is not None and not _takes_list(annotation) and takes_text_alone(annotation):
            return text
        if isinstance(error, yaml.constructor.ConstructorError):  # a key given twice
            raise ConfigError(f"{place}: {key}: {text!r}: {error.problem}") from error
        raise ConfigError(f"{place}: {key}: {text!r} is not YAML: put it in quotes for the shell, '{key}=…'") from error
    plain = isinstance(value, str | list | None) or (isinstance(value, bool) and takes_nothing(annotation))
    return value if plain or info is None or not takes_text_alone(annotation) else text


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; for anything that is not a mapping, the later value wins."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def as_intended(schema: Any, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Interpret values as users mean them: a section without keys is empty; where a list is expected, a single value is
    a list of one and text with commas is a list; Python's None is null where null is allowed; a leading `~` is the home
    directory. Booleans are turned into text where a number is expected, so that they are rejected."""
    result = dict(values)
    for name, given in values.items():
        info, key = schema.model_fields.get(name), f"{prefix}{name}"
        if info is None:
            continue
        value = result[name] = given if key in AS_WRITTEN or isinstance(given, Mapping) else at_home(given, key)
        if is_section(info.annotation):
            if value is None or isinstance(value, Mapping):
                result[name] = as_intended(info.annotation, value or {}, f"{key}.")
        elif isinstance(value, str) and "," in value and key not in FREE_TEXT and _takes_list(info.annotation):
            result[name] = [part for part in map(str.strip, value.split(",")) if part]
        elif value is not None and not isinstance(value, list | tuple | dict) and item_of_list(info.annotation):
            result[name] = [value]
        elif value in ("None", "none") and key not in OWN_NAMES and takes_nothing(info.annotation):
            result[name] = None
        if isinstance(value, bool) and takes_number(info.annotation):
            result[name] = as_yaml(value)
    return result


def at_home(value: Any, key: str) -> Any:
    """Expand `~` in the paths of a key's value: only shells do that, and not after every `key=`.

    Raises `ConfigError` if the system has no home directory.
    """
    if isinstance(value, str) and value.startswith("~/"):
        try:
            return str(Path(value).expanduser())
        except RuntimeError:
            message = "HOME is not set, and the system does not know this user's: write the whole path"
            raise ConfigError(f"{key} is {value!r}, and there is no home directory: {message}") from None
    if isinstance(value, Mapping):
        return {name: at_home(inner, key) for name, inner in value.items()}
    return [at_home(item, key) for item in value] if isinstance(value, list) else value


def _takes_list(annotation: Any) -> bool:
    return any(item_of_list(part) for part in types_of(annotation))


def _check_kind(schema: type[CommandConfig], path: Path, values: dict[str, Any]) -> None:
    """Raises `ConfigError` if the file belongs to another command."""
    given = {".".join(parts[:length]) for key, _ in leaves(values) if (parts := key.split(".")) for length in (1, 2)}
    counts = {module: len(signs & given) for module, signs in SIGNS.items()}
    module = max(counts, key=lambda name: counts[name])
    if counts[module] > counts.get(schema.module, 0):
        name = path.name if path.parent == CONFIGS else path
        raise ConfigError(
            f"{name} is a configuration of {module}, not of {schema.module}: python -m {module} --config {name}"
        )


def _grouped_by_place(schema: type[CommandConfig], layers: Sequence[Layer], lines: Sequence[str]) -> str:
    """The problems, each under the layer that introduced it."""
    places: dict[str, str] = {}
    for count in range(1, len(layers) + 1):
        values = as_intended(schema, merged({"output_dir": "."}, *(layer.values for layer in layers[:count])))
        try:
            schema.model_validate(values)
        except ValidationError as error:
            for line in problems_of(schema, values, error):
                places.setdefault(line, layers[count - 1].place)
    return _headed([(places.get(line, layers[-1].place), line) for line in lines])


def _headed(problems: Sequence[tuple[str, str]]) -> str:
    """`place: problem` for a single problem; otherwise each place with its problems listed beneath it."""
    if len(problems) == 1:
        return ": ".join(problems[0])
    by_place: dict[str, list[str]] = {}
    for place, line in problems:
        by_place.setdefault(place, []).append(line)
    return "\n".join("\n  ".join([f"{place}:", *lines]) for place, lines in by_place.items())
