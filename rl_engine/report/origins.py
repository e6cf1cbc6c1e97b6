"""A run → its origin: command, time, machine and versions, and the settings that differ from the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from rl_engine.report.charts import SUITE_TITLES
from rl_engine.report.pairs import Gain, gain_of_training
from rl_engine.report.shown_run import ShownRun
from rl_engine.report.tables import SuiteChange, defaults, plain
from rl_engine.run.origin.starts import wall_s


def origin_of(run: ShownRun) -> dict[str, str]:
    """What the run directory records about date, command, machine, versions, commit, seed and wall time."""
    found = {"Seed": str(run.settings.get("seed", "—"))}
    if not run.starts:
        return found
    first, last = run.starts[0], run.starts[-1]
    began = datetime.fromisoformat(first["began"])
    found["Began"] = f"{began:%Y-%m-%d %H:%M} UTC"
    if len(run.starts) > 1:
        found["Resumed"] = "after step " + ", ".join(str(start["after_step"]) for start in run.starts[1:])
    spent_s = wall_s(run.starts)
    if spent_s is not None:
        found["Wall time"] = str(timedelta(seconds=round(spent_s)))
    found["Machine"] = last["machine"]
    found["Commit"] = last["commit"] or "an installed package"
    found["Versions"] = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    if "command" in last:
        found["Command"] = last["command"]
    return found


def settings_of_its_own(run: ShownRun) -> dict[str, tuple[str, str]]:
    """Key → (value, default) for every key that differs from its default, which is `required` if it has none."""
    known = defaults(supervised=run.is_supervised)
    found = {}
    for key, value in run.settings.items():
        # Compared by value, since 600 and 600.0 are the same setting. Keys inside a mapping have no default.
        if key != "output_dir" and value != known.get(key):
            found[key] = (plain(value), plain(known.get(key, "—")))
    return found


def headline_of(run: ShownRun, changes: Sequence[SuiteChange]) -> tuple[str, SuiteChange, Gain | None] | None:
    """The first suite of the configuration, its change, and the paired difference if answers were kept; None without a
    second score."""
    able = [change for change in changes if change.last["step"] > change.first["step"]]
    if not able:
        return None
    change = min(able, key=lambda one: run.suites.index(one.suite) if one.suite in run.suites else len(run.suites))
    return SUITE_TITLES.get(change.suite, change.suite), change, gain_of_training(run, change)
