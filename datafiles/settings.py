"""YAML written by people → plain values, as they were meant; and back.

PyYAML reads YAML 1.1, in which 010 is 8, 1:30 is 90, 1e-4 is a string, the key `on` is true, and the last of two equal
keys wins.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from datafiles.text import in_one_line, read_text

TAG = "tag:yaml.org,2002:"
STR, MERGE = f"{TAG}str", f"{TAG}merge"
DIGITS, EXPONENT = "[0-9]+(?:_[0-9]+)*", "[eE][-+]?[0-9]+"
# The types of unquoted values, by the first pattern that fits; anything else is a string. `yes`, `no`, `on` and `off`
# stay booleans, as in 1.1: as a template's argument, the string "no" would be true.
PLAIN = {
    "null": "~|null|Null|NULL|",
    "bool": "|".join(f"{word}|{word.title()}|{word.upper()}" for word in ("true", "false", "yes", "no", "on", "off")),
    "int": "[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*|0x[0-9a-fA-F]+|0b[01]+)",
    "float": "|".join(
        (
            rf"[-+]?(?:{DIGITS}\.(?:{DIGITS})?|\.{DIGITS})(?:{EXPONENT})?",
            rf"[-+]?{DIGITS}{EXPONENT}",
            r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        )
    ),
    "merge": "<<",
}
PLAIN_TAGS = frozenset(f"{TAG}{name}" for name in (*PLAIN, "str", "seq", "map"))
SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class _Reader(yaml.SafeLoader):
    """Reads keys as strings, exactly as written, and refuses duplicate keys and recursive values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.deep_construct = True

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
            key.tag = STR
        return node


class _Writer(yaml.SafeDumper):
    """Quotes strings that either version of YAML would take for something else."""


def _integer(loader: yaml.SafeLoader, node: Any) -> int:
    return int(str(loader.construct_scalar(node)), 0)


def _switch(loader: yaml.SafeLoader, node: Any) -> Any:
    try:
        return loader.construct_yaml_bool(node)
    except KeyError as error:
        raise ValueError(f"invalid literal for !!bool: {error}") from None


def _text(loader: yaml.SafeLoader, node: Any) -> str:
    """A string in which JSON's two escapes for a character beyond U+FFFF are one character: JSON is valid YAML."""
    text = str(loader.construct_scalar(node))
    return SURROGATES.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


_Reader.yaml_implicit_resolvers = {}  # drop those of YAML 1.1
# Tags may only ask for types that a setting can have, not for a set, a date or bytes.
_Reader.yaml_constructors = {
    tag: make for tag, make in _Reader.yaml_constructors.items() if tag is None or tag in PLAIN_TAGS
}
_Reader.add_constructor(f"{TAG}int", _integer)
_Reader.add_constructor(f"{TAG}bool", _switch)
_Reader.add_constructor(STR, _text)
for _name, _pattern in PLAIN.items():
    for _kind in (_Reader, _Writer):
        _kind.add_implicit_resolver(f"{TAG}{_name}", re.compile(f"^(?:{_pattern})$"), None)


def read_yaml(text: str) -> Any:
    """Parse YAML. Raises `yaml.YAMLError`, whose mark says where, or `ValueError` if a value does not fit its tag."""
    return _Reader(text).get_single_data()


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file that a command wrote, such as a run's config.yaml.

    Raises `ValueError`, with a one-line message that names the file, if it is damaged.
    """
    try:
        tree = read_yaml(read_text(path))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {in_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is damaged: it holds no settings")
    return tree


def write_yaml(tree: Any) -> str:
    return yaml.dump(tree, Dumper=_Writer, sort_keys=False, allow_unicode=True)
