"""Configuration models → docs/configuration.md: `python -m rl_engine.config.reference > docs/configuration.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pydantic import BaseModel

from rl_engine.config.fields import as_yaml, describe, fields
from rl_engine.config.run import Config
from rl_engine.config.sft import SftConfig

HEADER = """# Configuration

Every key, with its type and range, its default and its meaning. This page is generated from the code by
`python -m rl_engine.config.reference > docs/configuration.md`; a test keeps it up to date.

On the command line, write a key as `key.sub=value`, with the value as in YAML: `lora.targets=[q_proj,v_proj]`,
`lora.start_from=null`. For a list you may also give a single value, or several separated by commas, without brackets.

A key that has no effect in combination with the others is an error: `data.path` while `data.source` is `arithmetic`, or
`lora.rank` with `method: full`. The one exception is a key in the file that an override on the command line makes
ineffective (`--config gsm8k.yaml method=full`): it is ignored, as if the file did not contain it.

## `python -m rl_engine.train`
"""
SUPERVISED = """
## `python -m rl_engine.sft`
The keys in the table below, and these from the table above: {same}.

"""
TABLE = """| key | type | default | meaning |
|---|---|---|---|
"""


def rows(model: type[BaseModel]) -> Iterator[str]:
    """One table row per key, with sections flattened."""
    for key, info in fields(model):
        default = "required" if info.is_required() else f"`{as_yaml(info.get_default(call_default_factory=True))}`"
        meaning = (info.description or "").replace("|", "\\|")
        yield f"| `{key}` | {describe(info)} | {default} | {meaning} |"


def reference() -> str:
    """The page; the table of the supervised command omits rows that are identical to the first table's."""
    shared = [*rows(Config)]
    supervised = [*rows(SftConfig)]
    own = [row for row in supervised if row not in shared]
    same = [row for row in supervised if row in shared]
    names = ", ".join(row.split(" | ")[0].removeprefix("| ") for row in same)
    tables = (HEADER, TABLE, "\n".join(shared), "\n", SUPERVISED.format(same=names), TABLE, "\n".join(own), "\n")
    return "".join(tables)


if __name__ == "__main__":
    sys.stdout.write(reference())
