"""Configuration → errors that can be detected without torch, within a second and before anything is loaded.

Reads only the names and first bytes of files. Checks that need the data or the model follow in the run itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import resource
from pathlib import Path

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.config.sft import SftConfig
from rl_engine.run.output import begins, check_output, refuse_mount, refuse_occupied, refuse_place, refuse_unmarked
from rl_engine.run.services import TRACKERS
from rollout.adapters import PEFT_CONFIG, AdapterError, adapters_inside, missing_version, resolve_version
from rollout.files.durable import check_writable
from rollout.frames import refuse_spelt_newline
from rollout.models import check_files, from_home
from rollout.peft_format import read_peft

FEWEST_FILES = 128
"""Open files that a process that trains may need. Alone it gets by with 80. With fewer than it needs, whichever library
is the first without says so, in its own way: gloo that it cannot resolve 127.0.0.1."""


def check_parts(config: Config | SftConfig, *, resume: bool = False) -> None:
    """Check that the model is complete, the adapter to start from is valid, and the metric services are installed.

    Raises `ValueError` or `FileNotFoundError`.
    """
    check_open_files()
    for package in TRACKERS:
        if getattr(config.log, package) is not None and not is_installed(package):
            raise ConfigError(f"log.{package} is set, and {package} is not installed: pip install {package}")
    if config.lora.start_from is not None and config.method == "lora" and begins(config, resume=resume):
        check_start(config.lora.start_from)
    if begins(config, resume=resume):
        check_texts(config)
    check_files(config.model.name)


def check_open_files() -> None:
    """Raises `ConfigError` if this process may not open enough files."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < FEWEST_FILES:
        raise ConfigError(
            f"this shell allows a process {allowed} open files, and training needs {FEWEST_FILES}: raise the limit "
            f"(ulimit -n {8 * FEWEST_FILES})"
        )


def check_texts(config: Config | SftConfig) -> None:
    """Check that prompt texts and stop strings are what the user meant. Raises `ValueError`."""
    for name in ("system", "instruction", "frame"):
        refuse_spelt_newline(f"prompt.{name}", getattr(config.prompt, name))
    for stop in config.sampling.stop if isinstance(config, Config) else ():
        refuse_spelt_newline("sampling.stop", stop)


def check_start(start: str) -> None:
    """Check that `lora.start_from` names an adapter that can be trained further.

    Raises `ValueError` or `FileNotFoundError`.
    """
    place = from_home(start)
    if not (place / PEFT_CONFIG).is_file():
        message = missing_version(place) or f"{start} is not an adapter (no {PEFT_CONFIG} there){_remedy(place)}"
        raise ConfigError(f"lora.start_from: {message}")
    read_peft(place, "lora.start_from")


def _remedy(place: Path) -> str:
    """A hint about which adapter in a directory may be meant; for a run, one fixed version: the run may still train."""
    with contextlib.suppress(AdapterError):
        if (meant := resolve_version(place)).why:
            return f"; {meant.why.partition(':')[0]}: give {meant.directory}"
    return adapters_inside(place)


def is_installed(package: str) -> bool:
    """Whether the package is installed. A directory of this name is not enough: wandb leaves one wherever it ran."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def check_place(config: Config | SftConfig, *, resume: bool, overwrite: bool) -> None:
    """Check that the output directory is writable and that no other run is or works in it."""
    run = Path(config.output_dir)
    check_writable(run, "output_dir")
    refuse_place(run)
    refuse_occupied(run)
    if overwrite:
        refuse_unmarked(run)
        refuse_mount(run)
    else:
        check_output(config, resume=resume)
