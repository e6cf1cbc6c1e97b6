"""YAML that people write → plain values, as they mean it; and back.

PyYAML reads YAML 1.1, in which 010 is 8, 1:30 is 90, 1e-4 is a text, the key `on` is true, and of a key given twice the
last one holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from datafiles.text import read_text

TAG = "tag:yaml.org,2002:"
STR, MERGE = f"{TAG}str", f"{TAG}merge"
DIGITS, EXPONENT = "[0-9]+(?:_[0-9]+)*", "[eE][-+]?[0-9]+"
# What stands there without quotes → what it is, the first that fits; anything else is text. `yes` and `on` stay what
# they were in 1.1: as a template's argument the text "no" would be true.
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
    """Keys are text as it is written, and none is given twice; nothing holds itself."""

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
    """Quotes what either version of YAML would take for something else than text."""


def _integer(loader: yaml.SafeLoader, node: Any) -> int:
    return int(str(loader.construct_scalar(node)), 0)


def _switch(loader: yaml.SafeLoader, node: Any) -> Any:
    try:
        return loader.construct_yaml_bool(node)
    except KeyError as error:
        raise ValueError(f"invalid literal for !!bool: {error}") from None


def _text(loader: yaml.SafeLoader, node: Any) -> str:
    """A letter beyond U+FFFF as JSON spells it, in two escapes, is one letter: JSON is YAML."""
    text = str(loader.construct_scalar(node))
    return SURROGATES.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


_Reader.yaml_implicit_resolvers = {}  # those of 1.1 are not wanted
# What a tag may ask for is what a setting can be; not a set, a date or bytes.
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
    """Raises `yaml.YAMLError`, whose mark says where, or `ValueError` for what is not what its tag says."""
    return _Reader(text).get_single_data()


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file that a command wrote, such as a run's config.yaml.

    Raises `ValueError`, in one line that names it, for one that is damaged.
    """
    try:
        tree = read_yaml(read_text(path))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is damaged: it holds no settings")
    return tree


def write_yaml(tree: Any) -> str:
    return yaml.dump(tree, Dumper=_Writer, sort_keys=False, allow_unicode=True)
