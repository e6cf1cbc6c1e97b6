"""Configuration and metrics of a run → the rows that describe how an adapter was trained."""

from __future__ import annotations

import json

from rl_engine.config import Config, LoraConfig
from rl_engine.config.sft import SftConfig
from rl_engine.run.trained_adapter import TrainingRun
from rl_engine.sft.conversations import chat_of
from rollout.prompts.chat import describe_arguments
from rollout.prompts.generated import REASONING_GYM
from rollout.prompts.problems import MIX, dataset_of, parts_of

Rows = list[tuple[str, str]]
FORMS = {"boxed": r"`\boxed{…}`", "answer_is": "“the answer is …”", "gsm8k_hashes": "`#### …`"}


def recipe_rows(config: Config | SftConfig, run: TrainingRun, step: int | None) -> Rows:
    """(what, how) rows about the training; every number is from the configuration or was measured by the run."""
    method = _supervised(config) if isinstance(config, SftConfig) else _reinforced(config, step)
    return [
        *_start(config.lora),
        ("data", _data(config)),
        *method,
        ("precision", f"base model {config.model.dtype}, adapter and optimizer float32"),
        ("seed", str(config.seed)),
        *_measured(run, step),
    ]


def data_set_of(config: Config | SftConfig) -> str | None:
    """The hub dataset used for training; None for files and generated data."""
    source = chat_of(config.data) if isinstance(config, SftConfig) else dataset_of(config.data)
    return source.path if source else None


def _reinforced(config: Config, step: int | None) -> Rows:
    return [
        ("prompt", _prompt(config)),
        ("sampling", _sampling(config)),
        ("reward", _reward(config)),
        ("objective", _objective(config)),
        ("optimizer", config.optim.describe()),
        ("steps", _steps(config, step)),
    ]


def _supervised(config: SftConfig) -> Rows:
    train = config.train
    length = f"{train.steps:,} steps" if train.steps else f"{train.epochs:g} epochs"
    what = "packed rows" if config.data.packing else "examples"
    return [
        ("objective", "log-likelihood of the answers"),
        ("optimizer", config.optim.describe()),
        ("steps", f"{length} of {train.batch_size} {what} of up to {config.data.max_tokens:,} tokens"),
    ]


def _start(lora: LoraConfig) -> Rows:
    """Rows about how the start differs from plain LoRA with an update of zero."""
    rows = []
    if lora.start_from is not None:
        rows.append(("start", "another adapter (`lora.start_from`)"))
    elif lora.is_tiny:
        rows.append(
            ("start", f"TinyLoRA: {lora.numbers} trained numbers in all, in the weights' first {lora.rank} directions")
        )
    elif lora.init != "default":
        rows.append(("start", f"{lora.init} of rank {lora.rank}"))
    if lora.plus_ratio != 1:
        rows.append(("LoRA+", f"B learns at {lora.plus_ratio:g} times the rate"))
    return rows


def _data(config: Config | SftConfig) -> str:
    data = config.data
    limit = f", the first {data.limit:,}" if data.limit else ""
    if isinstance(config, Config) and data.source == "arithmetic":
        task = config.data.arithmetic
        numbers = f"{task.terms[0]}" if len(task.terms) == 1 else f"{min(task.terms)} to {max(task.terms)}"
        return f"{data.limit or task.count:,} generated sums and differences of {numbers} numbers up to {task.largest}"
    if data.source == REASONING_GYM:
        settings = f" with {json.dumps(data.task_settings)}" if data.task_settings else ""
        count = f"{data.limit:,} generated" if data.limit else "generated"
        return f"{count} problems of reasoning-gym's task `{data.task}`{settings}"
    if isinstance(config, Config) and data.source == MIX:
        parts = zip(parts_of(config.data), config.data.mix, strict=True)
        return "a mix of " + ", ".join(
            f"{_data(config.model_copy(update={'data': part.config}))} (weight {one.weight:g})" for part, one in parts
        )
    if (path := data_set_of(config)) is not None:
        return f"[{path}](https://huggingface.co/datasets/{path}){limit}"
    own = data.source in ("file", "jsonl")
    return f"{'a file' if own else data.source}{', from a file' if data.path and not own else ''}{limit}"


def _prompt(config: Config) -> str:
    template = "the model's chat template" if config.prompt.template == "chat" else f"`{config.prompt.template}`"
    if config.prompt.template_arguments:
        template += f" with {describe_arguments(config.prompt.template_arguments)}"
    return f"{template}, at most {config.data.max_prompt_tokens:,} tokens; the code above builds it"


def _sampling(config: Config) -> str:
    sampling = config.sampling
    return (
        f"{config.train.problems_per_step} problems × {sampling.n} completions a step, at most "
        f"{sampling.max_tokens:,} tokens, temperature {sampling.temperature:g}"
    )


def _reward(config: Config) -> str:
    rewards = config.rewards
    terms = {
        "a form term": rewards.format_weight,
        "a penalty on length": rewards.overlong_weight,
        "a penalty on repetition": rewards.repetition_weight,
        "a function of its own": rewards.function_weight if rewards.function else 0.0,
    }
    added = [f"{name} (weight {weight:g})" for name, weight in terms.items() if weight]
    correct = f"{rewards.correct_weight:g} for a correct final answer, else 0"
    if rewards.mask_truncated:
        added.append("completions that were cut off do not count")
    forms = " or ".join(FORMS[form] for form in rewards.answer_forms)
    return "; ".join([correct, *added, f"read from {forms}"])


def _objective(config: Config) -> str:
    loss = config.loss
    parts = [f"`{loss.name}` over `{loss.baseline}`, normalized by `{loss.normalizer}`"]
    parts += [f"{name} {value:g}" for name, value in loss.bounds().items()]
    parts += loss.terms()
    if loss.correction != "none":
        parts.append(f"sampler correction {loss.correction}")
    return ", ".join(parts)


def _steps(config: Config, step: int | None) -> str:
    updates = config.learner.updates
    each = "one update each" if updates == 1 else f"{updates} updates each"
    if step is None:
        return f"of {config.train.steps:,}, {each}"
    completions = step * config.completions_per_step
    return f"{step:,} of {config.train.steps:,}, {each}; {completions:,} completions"


def _measured(run: TrainingRun, step: int | None) -> Rows:
    """Rows about the run's cost and outcome, up to the step of this version."""
    lines = [line for line in run.metrics if "time/step_s" in line and (step is None or line["step"] <= step)]
    if not lines:
        return []
    rows = [("training time", f"{sum(line['time/step_s'] for line in lines):,.0f} s, the sum of the steps")]
    if "policy/kl_base" in lines[-1]:
        rows.append(("KL to the base model", f"{lines[-1]['policy/kl_base']:.3g} nats per token at the last step"))
    return rows
