"""Configuration → what would run, checked as far as is possible without weights."""

from __future__ import annotations

from rich.markup import escape

from evals.command import lasting_console
from rewards import Grader
from rl_engine.config import Config
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.lines import first_lines, memory_lines
from rl_engine.plan.memory import memory_of_run
from rl_engine.policy.base_model import load_meta_model
from rl_engine.policy.lora.adapter import describe_adapter
from rl_engine.policy.lora.targets import coverage_of
from rl_engine.run.console import RunConsole
from rl_engine.run.memory import available
from rl_engine.run.output import Beginning, dry_output
from rl_engine.train.assemble import plan_lines, prepare_run
from rl_engine.train.checks import wanted_of_hub
from rollout.hub import check_hub
from rollout.prompts.problems import tasks_of


def dry_run(config: Config, ranks: Ranks, beginning: Beginning) -> None:
    """Print what would run. Raises what the run itself would raise before it loads weights."""
    output_notes = dry_output(config, beginning)
    console = RunConsole(quiet=False, steps=config.train.steps)
    console.print_rows({"model": f"{config.model.name} ({config.model.dtype})", **plan_lines(config)})
    meta_model = load_meta_model(config.model)
    if config.method == "lora":
        coverage = coverage_of(meta_model, config.lora)
        console.print_rows({"training": describe_adapter(config.lora, coverage)})
    else:
        console.print_rows({"training": "full fine-tuning, all parameters, float32 masters"})
    console.print_rows(first_lines(config, meta_model))
    console.print_rows(memory_lines(memory_of_run(config, ranks, meta_model), available(ranks)))
    check_hub(wanted_of_hub(config))
    with Grader.from_config(config.rewards, tasks_of(config.data)) as grader:
        prepared = prepare_run(config, ranks, grader, console, beginning.resume)
    data, suites, renderer = prepared.data, prepared.suites, prepared.renderer
    console.print_rows(
        {
            "data": f"{config.data.source}: {data.describe()}",
            **{f"suite {suite.name}": f"{len(prompts)} problems" for suite, prompts in suites},
            "stop": ", ".join(repr(text) for text in (*renderer.stop, *config.sampling.stop)) or "end of sequence",
            "template": f"{config.prompt.template}; the first prompt ({len(data.prompts[0].token_ids)} tokens):",
        }
    )
    out = lasting_console()
    out.rule(style="dim")
    out.print(escape(data.prompts[0].text), soft_wrap=True)
    out.rule(style="dim")
    for line in output_notes:
        console.note(line)
    console.note("dry run: nothing was trained or written")
