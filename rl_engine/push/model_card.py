"""Trained adapter → the text of its model card: metadata for the hub, then the text, most important facts first."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from datafiles.markdown import as_markdown
from evals.suites import HELD_OUT_SEED, SUITES
from rl_engine.config import Config
from rl_engine.config.sft import SftConfig
from rl_engine.push.recipe import data_set_of, recipe_rows
from rl_engine.run.trained_adapter import Evaluation, Measure, TrainedAdapter, dtype_of
from rollout.config import PromptConfig
from rollout.engine import smallest_allowed_rank
from rollout.frames import FRAMES
from rollout.prompts.arithmetic import expressions
from rollout.prompts.sources import SOURCES

if TYPE_CHECKING:
    from rl_engine.merge.weights import Rounding

TEMPLATE = Path(__file__).parent / "model_card.md.jinja"
EXAMPLE = "A train travels 120 km in 1.5 hours. What is its average speed in km/h?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """The adapter's licence.

    Example: `Licence(id="apache-2.0", name=None, link=None, origin="base")`
    """

    id: str | None
    """The hub's abbreviation; None if no licence is stated."""
    name: str | None = None
    link: str | None = None
    origin: str | None = None
    """Its origin: `given` by the user who pushes, or `base` for the base model's card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is published and where."""

    adapter: TrainedAdapter
    repo: str
    """Hub repository: `user/name`."""
    tag: str
    licence: Licence
    merged: str | None
    """Precision of the merged model in the release; None if there is none."""
    completions: bool = False
    """Whether report.html includes training problems and completions."""

    @property
    def name(self) -> str:
        return self.repo.partition("/")[2]


def card_text(release: Release, rounding: Rounding | None, files: Sequence[str]) -> str:
    """README.md of a release. `files` are paths within the release; `rounding` is the merged model's."""
    adapter, run = release.adapter, release.adapter.run
    config = run.config if run else None
    reinforced = config if isinstance(config, Config) else None
    prompt = config.prompt if config else None
    return template().render(
        metadata=metadata(release).to_yaml(),
        release=release,
        adapter=adapter,
        base=adapter.base,
        run=run,
        reinforced=reinforced,
        supervised=isinstance(config, SftConfig),
        rounding=rounding,
        evaluations=adapter.evaluations(),
        rows=[*adapter_rows(adapter), *(recipe_rows(config, run, adapter.step) if run and config else [])],
        files=files,
        prompt=prompt,
        example=example_problem(reinforced),
        prompt_lines=prompt_lines(prompt),
        stop=stop_strings(reinforced),
        max_tokens=(reinforced.eval.max_tokens or reinforced.sampling.max_tokens) if reinforced else 512,
        dtype=dtype_of(adapter),
        max_lora_rank=smallest_allowed_rank(adapter.rank),
    )


@functools.cache
def template() -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"py": _literal, "repr": repr, "percent": _percent, "share": _share, "md": as_markdown}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def metadata(release: Release) -> ModelCardData:
    """Metadata that the hub reads: base model, library, licence, data, scores as a `model-index`."""
    adapter = release.adapter
    config = adapter.run.config if adapter.run else None
    trained_on = data_set_of(config) if config else None
    scores = [result for _, evaluation in adapter.evaluations() for result in eval_results(evaluation)]
    return ModelCardData(
        base_model=adapter.base.hub_id,
        library_name="peft",
        pipeline_tag="text-generation",
        license=release.licence.id,
        license_name=release.licence.name,
        license_link=release.licence.link,
        datasets=[trained_on] if trained_on else None,
        tags=["lora", *(["reinforcement-learning"] if isinstance(config, Config) else []), "reasoning", "rl_engine"],
        model_name=release.name if scores else None,
        eval_results=scores or None,
        base_model_relation="adapter" if adapter.base.hub_id else None,
    )


def eval_results(evaluation: Evaluation) -> list[EvalResult]:
    """Entries of the `model-index`: scores as fractions, with interval and setting as arguments of the metric."""
    setting = evaluation.setting
    suite = SUITES.get(setting.suite)
    dataset = SOURCES.get(suite.source) if suite else None
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Mathematical reasoning",
            dataset_type=dataset.path if dataset else setting.suite,
            dataset_name=setting.suite,
            dataset_config=dataset.configs[0] if dataset and len(dataset.configs) == 1 else None,
            dataset_split=dataset.splits[0] if dataset and len(dataset.splits) == 1 else None,
            dataset_revision=dataset.revision if dataset else None,
            metric_type="accuracy",
            metric_name=measure.name,
            metric_value=round(measure.value, 4),
            metric_args={
                "interval_95": [round(bound, 4) for bound in measure.interval],
                "problems": setting.problems,
                "samples": setting.samples,
                "temperature": setting.temperature,
                "max_tokens": setting.max_tokens,
                "suite_version": setting.suite_version,
            },
        )
        for measure in evaluation.measures
    ]


def headline(adapter: TrainedAdapter) -> str:
    """The version and its scores in one line.

    Example: `v000025: held_out 93.0 % (89.2–95.5)`
    """
    scores = ", ".join(f"{one.setting.suite} {_percent(one.measures[0])}" for _, one in adapter.evaluations())
    return f"{adapter.version}: {scores or 'not evaluated'}"


def adapter_rows(adapter: TrainedAdapter) -> list[tuple[str, str]]:
    """Facts about the adapter, as far as its own files give them."""
    base, peft = adapter.base, adapter.peft
    modules = sorted(name.removesuffix(".lora_A.weight") for name in adapter.shapes if name.endswith(".lora_A.weight"))
    leaves = sorted({module.rpartition(".")[2] for module in modules})
    numbers = sum(math.prod(shape) for shape in adapter.shapes.values())
    revision = f", revision `{base.revision}`" if base.revision else ""
    scale = "(α / √rank)" if peft["use_rslora"] else "(α / rank)"
    return [
        ("base model", f"{base.name}{revision}"),
        ("method", f"LoRA of rank {adapter.rank}, α = {peft['lora_alpha']:g}: W + {scale} · B·A"),
        ("targets", f"{', '.join(leaves)}: {len(modules):,} matrices, {numbers:,} trained parameters"),
    ]


def example_problem(config: Config | None) -> str:
    """A problem like those the adapter was trained on, if they are generated; never one from a dataset."""
    if config is None or config.data.source != "arithmetic":
        return EXAMPLE
    task = config.data.arithmetic
    expression = next(expressions("held_out", HELD_OUT_SEED, task.terms, task.largest))
    return task.wording.replace("{expression}", expression.text)


def prompt_lines(prompt: PromptConfig | None) -> list[str]:
    """Lines of the frame around a problem; empty for the tokenizer's chat template."""
    if prompt is None:
        return ["{problem}"]
    if prompt.template == "chat":
        return []
    return (prompt.frame or FRAMES[prompt.template].text).splitlines(keepends=True)


def stop_strings(config: Config | None) -> list[str]:
    if config is None:
        return []
    template = FRAMES.get(config.prompt.template)
    return [*(template.stop if template else ()), *config.sampling.stop]


def _literal(value: Any) -> str:
    """A value as a Python literal; strings and lists in JSON are valid ones."""
    return json.dumps(value, ensure_ascii=False)


def _percent(measure: Measure) -> str:
    low, high = (100 * bound for bound in measure.interval)
    return f"{100 * measure.value:.1f} % ({low:.1f}–{high:.1f})"


def _share(value: float) -> str:
    """A fraction as a percentage with two significant digits."""
    return f"{100 * value:.2g} %"
