"""Trained adapter → the folder that is published, without any path of the machine it was made on.

    adapter_model.safetensors  adapter_config.json  [chat_template.jinja]  manifest.json  README.md  curves.png
    run/config.yaml  run/metrics.jsonl  run/evals/*.json  run/report.html  merged/

The same adapter gives the same bytes, so a folder can be rebuilt, and pushing it again sends nothing.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from datafiles.settings import write_yaml
from evals.protocol.training_protocol import chat_template_of
from rl_engine.config import Config
from rl_engine.config.file import RUN_CONFIG
from rl_engine.push.model_card import Release, card_text
from rl_engine.report.completions import NO_COMPLETIONS
from rl_engine.report.page import PROBLEMS, read_runs, write_page
from rl_engine.run.output import refuse_inside
from rl_engine.run.records import METRICS, PLOT, REPORT
from rl_engine.run.trained_adapter import TrainedAdapter, TrainingRun
from rollout.adapters import CHAT_TEMPLATE, MANIFEST, PEFT_CONFIG, PEFT_WEIGHTS, sha256_of, write_manifest
from rollout.files.durable import check_writable, follow_umask, naming
from rollout.files.exclusive import exclusive
from rollout.files.ownership import place_aside
from rollout.models import from_home

CARD = "README.md"
# Sections whose strings a model reads or writes; they are kept even if they look like paths.
SENT_TO_THE_MODEL = ("prompt", "sampling")


def make_release(release: Release, folder: Path, say: Callable[[str], None] = print) -> list[Path]:
    """Write the folder from scratch and return its files, as paths within it. An earlier release that differs in any
    byte, for example because its card was edited, is kept beside it.

    Raises `FileExistsError` rather than replace a directory that is not an earlier release, and `OccupiedError` if
    another process is writing it.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        kind = "a link, which is not followed" if folder.is_symlink() else "not a directory"
        raise FileExistsError(f"--output: {folder} is {kind}: give another")
    check_writable(folder.parent, "--output")
    refuse_inside(folder, "--output")
    with exclusive(folder):
        _make(release, folder, say)
    return files_of(folder)


def _make(release: Release, folder: Path, say: Callable[[str], None]) -> None:
    if folder.exists() and not ((folder / MANIFEST).is_file() and (folder / CARD).is_file()) and any(folder.iterdir()):
        raise FileExistsError(f"--output: {folder} exists and is not a release: give another directory")
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with naming(folder, scratch):
            scratch.mkdir(parents=True)
            _fill(release, scratch)
        if folder.exists() and _is_same(folder, scratch):
            shutil.rmtree(folder)
        elif folder.exists() and any(folder.iterdir()):
            place = place_aside(folder)
            folder.rename(place)
            say(f"{folder} was another release, or has been edited: it is kept in {place}")
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    files = files_of(one)
    return files == files_of(other) and all(sha256_of(one / path) == sha256_of(other / path) for path in files)


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _fill(release: Release, folder: Path) -> None:
    adapter = release.adapter
    _copy_adapter(adapter, folder)
    if adapter.run is not None:
        _copy_run(adapter.run, folder)
        if isinstance(adapter.run.config, Config) and (adapter.run.directory / REPORT).is_file():
            _write_report(adapter.run, folder / "run" / REPORT, completions=release.completions)
        _forget_paths(folder / "run", machine_paths(adapter, adapter.run))
    rounding = None
    if release.merged is not None:
        from rl_engine.merge.weights import merge  # loads torch and transformers

        rounding = merge(adapter, release.merged, folder / "merged")
        if adapter.run is not None:
            (folder / "merged" / "run").mkdir(exist_ok=True)
            for file in (folder / MANIFEST, folder / "run" / RUN_CONFIG):  # the versions without paths
                shutil.copyfile(file, folder / "merged" / "run" / file.name)
    follow_umask(folder)
    card = card_text(release, rounding, [str(path) for path in files_of(folder)])
    (folder / CARD).write_text(card, encoding="utf-8")


def _copy_adapter(adapter: TrainedAdapter, folder: Path) -> None:
    """Copy the weights unchanged; in the two files that name the base model, use its public name.

    The manifest lists the files beside it, and identifies the published version that they come from.
    """
    shutil.copyfile(adapter.directory / PEFT_WEIGHTS, folder / PEFT_WEIGHTS)
    if template := chat_template_of(adapter.directory):
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    base = adapter.base
    peft = {**adapter.peft, "base_model_name_or_path": base.hub_id, "revision": base.revision}
    (folder / PEFT_CONFIG).write_text(json.dumps(peft, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    manifest = {key: value for key, value in adapter.manifest.items() if key not in ("files", "format")}
    write_manifest(folder, {**manifest, "base_model": base.name, "published_manifest": adapter.sha256})


def _copy_run(run: TrainingRun, folder: Path) -> None:
    place = folder / "run"
    place.mkdir()
    values = without_paths(run.values)
    (place / RUN_CONFIG).write_text(write_yaml(values), encoding="utf-8")
    (place / "evals").mkdir()
    for path in sorted((run.directory / "evals").glob("*.json")):
        report = without_paths(json.loads(path.read_text(encoding="utf-8")))
        (place / "evals" / path.name).write_text(
            json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    if (run.directory / METRICS).is_file():
        # The last line of a run in progress may be incomplete.
        lines = "".join(json.dumps(line) + "\n" for line in run.metrics)
        (place / METRICS).write_text(lines, encoding="utf-8")
    if (run.directory / PLOT).is_file():
        shutil.copyfile(run.directory / PLOT, folder / PLOT)


def _write_report(run: TrainingRun, page: Path, *, completions: bool) -> None:
    """Render the run's report again. Its completions contain training problems and answers that are not ours to
    publish, so they are included only on request."""
    (shown,) = read_runs([run.directory], PROBLEMS)
    # Commands may contain any path of this machine.
    shown = replace(shown, starts=[{key: start[key] for key in start if key != "command"} for start in shown.starts])
    write_page([shown if completions else replace(shown, completions=NO_COMPLETIONS, shows_answers=False)], page)


def without_paths(value: Any) -> Any:
    """The same values with every absolute path replaced by its last part, except in `SENT_TO_THE_MODEL` sections."""
    if isinstance(value, dict):
        return {key: inner if key in SENT_TO_THE_MODEL else without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return Path(value).name if _is_path(value) else value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("/", "~")) and "\n" not in value


def machine_paths(adapter: TrainedAdapter, run: TrainingRun) -> set[str]:
    """Every path of this machine that may occur in a text about the run."""
    found = {adapter.directory, run.directory, from_home("~"), Path.cwd(), *_paths(run.values)}
    if adapter.base.directory is not None:
        found.add(adapter.base.directory)
    # Skip a home or working directory of "/", which reveals nothing, and an unknown home, which is "~".
    texts = {str(path) for path in found if path.name and str(path) != "~"}
    # The base model's directory as given to the run: models/mine looks like a hub id.
    given = str(run.values.get("model", {}).get("name", ""))
    return texts | ({given} if adapter.base.directory is not None and "/" in given else set())


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, dict):
        value = [inner for key, inner in value.items() if key not in SENT_TO_THE_MODEL]
    if isinstance(value, list):
        for inner in value:
            yield from _paths(inner)
    elif _is_path(value):
        yield Path(value)


def _forget_paths(folder: Path, paths: Iterable[str]) -> None:
    """Replace each path in every file by its last part, longest paths first."""
    longest_first = sorted(paths, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])")
    for path in files_of(folder):
        text = (folder / path).read_text(encoding="utf-8")
        (folder / path).write_text(pattern.sub(lambda found: Path(found[0]).name, text), encoding="utf-8")
