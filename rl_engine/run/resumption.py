"""An earlier run in the output directory → the same run resumed: what is checked, and which changes are recorded."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datafiles.settings import read_settings
from rl_engine.config import Config
from rl_engine.config.fields import value_at
from rl_engine.config.file import RUN_CONFIG, ConfigError
from rl_engine.config.resuming import Changed, ResumeRule, changes, fixed_values
from rl_engine.config.sft import SftConfig
from rl_engine.run.origin.starts import read_starts
from rollout.files.durable import naming

RESUMED = "resumed.jsonl"
"""One object per resumption that changed something: after which step, which keys, old and new values."""
HASH_CHARACTERS = 32
UP_TO_ROUNDING = "from here on the run equals an uninterrupted one up to rounding, no longer bit for bit"
WITHOUT_IT = "if it is removed, --resume compares the settings with those in starts.jsonl and with the checkpoint"


def config_hash(config: Config | SftConfig, problems: str) -> str:
    """`<settings>-<problems>`, two digests that cover everything the numbers of a run depend on."""
    settings = json.dumps(fixed_values(config), sort_keys=True)
    return f"{hashlib.sha256(settings.encode()).hexdigest()[:HASH_CHARACTERS]}-{problems[:HASH_CHARACTERS]}"


def problems_digest(problems: Iterable[tuple[Sequence[int], str]]) -> str:
    """Digest of a run's training data: for each problem or example its token ids and its other data as text."""
    digest = hashlib.sha256()
    for token_ids, text in problems:
        ids = array("q", token_ids).tobytes()
        digest.update(b"%d %d " % (len(ids), len(text)) + ids + text.encode(errors="surrogatepass"))
    return digest.hexdigest()


def check_resumable(made_by: str, config: Config | SftConfig, now: str, step: int) -> None:
    """Raises `ConfigError` if the checkpoint after `step` was made by a run with another `config_hash` than this
    one.

    A run of an earlier version noted no commit of its model, which is pinned here if its config.yaml is gone.
    """
    unpinned = config_hash(config.with_values("model", revision=None), now.partition("-")[2])
    if made_by in (now, unpinned):
        return
    if "-" not in made_by:
        raise ConfigError(
            f"{config.output_dir}: the checkpoint after step {step} is of an earlier version of this program, and "
            "cannot be resumed; --overwrite starts over, or give another output_dir"
        )
    if made_by.partition("-")[0] not in (now.partition("-")[0], unpinned.partition("-")[0]):
        raise ConfigError(
            f"{config.output_dir}: the checkpoint after step {step} was made by another configuration; --overwrite "
            "starts over, or give another output_dir"
        )
    what = f"data.path ({config.data.path})" if config.data.path else f"data.source ({config.data.source})"
    raise ConfigError(
        f"{what} has changed since step {step} of {config.output_dir}: the run learned from other problems or prompts. "
        "Restore them, or give another output_dir"
    )


def planned_length(config: Config | SftConfig, steps: int) -> int | None:
    """The number of steps if the rate of each depends on it, else None."""
    return None if config.optim.schedule == "constant" else steps


def check_length(planned: int | None, config: Config | SftConfig, steps: int) -> None:
    """Raises `ConfigError` if the rates up to a checkpoint followed from another length of the run. `refuse_changes`
    does not see that if the length was edited in the run's own config.yaml."""
    if planned not in (None, steps):
        raise ConfigError(
            f"{config.output_dir} was planned for {planned} steps, and is to have {steps}: with optim.schedule "
            f"{config.optim.schedule} the rate of every step depends on that. Give what it was, or another output_dir"
        )


def changes_since(run: Path, config: Config | SftConfig) -> list[Changed]:
    """The differences from the settings that the run last trained with; empty if they are not on record.

    Raises `ConfigError` if they cannot be read.
    """
    before = settings_before(run)
    return changes(before, config) if before is not None else []


def began_with(run: Path, section: str, key: str) -> Any:
    """The value of `section.key` that a run last trained with; None if there is no run or no such key."""
    return value_at(settings_before(run), f"{section}.{key}")


def settings_before(run: Path) -> dict[str, Any] | None:
    """The settings that a run last trained with; None if they are not on record. Its config.yaml may have been edited
    since, so they are those of its last start, and the file's only for a run of an earlier version.

    Raises `ValueError` if either cannot be read.
    """
    stated = read_run_config(run / RUN_CONFIG) if (run / RUN_CONFIG).is_file() else None
    starts = read_starts(run)
    return starts[-1].get("settings", stated) if starts else stated


def read_run_config(path: Path) -> dict[str, Any]:
    try:
        values = read_settings(path)
    except ValueError as error:
        raise ConfigError(f"{error}; {WITHOUT_IT}") from error
    if not {"train", "checkpoint"} <= values.keys():
        raise ConfigError(f"{path} is damaged: it is not the configuration of a run; {WITHOUT_IT}")
    return values


def refuse_changes(run: Path, found: Sequence[Changed]) -> None:
    """Raises a `ConfigError` that names every change that would make it a different run."""
    refused = [change for change in found if change.is_refused]
    if not refused:
        return
    raise ConfigError(
        f"{run} cannot be resumed with another configuration: {'; '.join(map(str, refused))}. Give what it was, "
        "or another output_dir; --overwrite starts over"
    )


def notes_on(found: Sequence[Changed]) -> Iterator[str]:
    """Messages about the changes that are allowed."""
    changed = [change for change in found if change.key != "output_dir"]
    if changed:
        yield f"changed since the run began, to be noted in {RESUMED}: {'; '.join(map(str, changed))}"
    rounded = [change.key for change in changed if change.rule is ResumeRule.ROUNDING]
    if rounded:
        yield f"{', '.join(rounded)}: {UP_TO_ROUNDING}"


def note_resumption(run: Path, config: Config | SftConfig, step: int, lines: list[dict[str, float]]) -> None:
    """Record what was changed after `step`, before config.yaml is replaced with the new values.

    A run is evaluated after its last step. If the run is extended and no evaluation was due at that step, the scores
    move from the run's `lines` into this record, so that the metrics equal those of a run planned longer from the
    start.
    """
    found = changes_since(run, config)
    if not found:
        return
    record: dict[str, Any] = {
        "step": step,
        "changed": {change.key: {"from": change.old, "to": change.new} for change in found},
    }
    end = next((change.old for change in found if change.key == "train.steps"), None)
    before = settings_before(run)
    if (
        end is not None
        and isinstance(config, Config)
        and not _is_due(end, (value_at(before, "eval.every", 0), config.eval.every))
    ):
        for line in lines:
            if line["step"] == end:
                record["evaluated"] = {key: line.pop(key) for key in [*line] if key.startswith("eval/")}
    with naming(run / RESUMED), (run / RESUMED).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _is_due(step: int, periods: tuple[int, ...]) -> bool:
    return any(every > 0 and step % every == 0 for every in periods)


def steps_on_record(lines: Sequence[Mapping[str, float]]) -> int:
    return int(lines[-1]["step"]) if lines else 0
