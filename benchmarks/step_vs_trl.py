"""Seconds of a whole training step, ours and TRL's GRPOTrainer's, on the same work in one run.

    python -m benchmarks.step_vs_trl small                             # 3.2 M-parameter Qwen3, float32, 64 x 8 x 48
    python -m benchmarks.step_vs_trl smollm2 --model DIR_OR_HUB_ID     # SmolLM2-135M, bfloat16, 8 x 16 x 96

A step samples a group for each prompt, learns from all of it, and makes the new rank-1 adapter (on all linear layers)
available to the next step's sampling. Both arms get the same prompts and the same model, with an end token outside its
vocabulary so that every completion has its full length, and rewards that give each group a signal; grading is not
included. TRL samples with transformers' `generate`, because its vLLM mode does not run on a CPU. Gradient checkpointing
is off in both, and TRL uses as many micro-batches as its logits need to fit into memory. The arms are processes that
take turns, so that each has the machine to itself.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

from rl_engine.config import Config, load_config
from rl_engine.learner.gap import gap_limits
from rollout.types import Problem, Prompt


@dataclass(frozen=True, slots=True)
class Work:
    """The size of a step."""

    dtype: str
    problems: int
    samples: int
    max_tokens: int
    trl_microbatches: int

    @property
    def completions(self) -> int:
        return self.problems * self.samples


WORK = {"small": Work("float32", 64, 8, 48, 4), "smollm2": Work("bfloat16", 8, 16, 96, 8)}
# What keeps the libraries of both arms from reporting on themselves; before they are imported.
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
# An arm's report of a step: seconds, prompt tokens, completion tokens.
Report = tuple[float, int, int]


def prepare(work: Work, model: str | None, directory: Path) -> list[str]:
    """Write the model that both arms load, and return the step's prompts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from rl_engine.policy.base_model import DTYPES
    from rollout.config import ArithmeticConfig, PromptConfig
    from rollout.frames import BOXED_INSTRUCTION
    from rollout.models import EMBEDDED_DIR, locate_model
    from rollout.prompts.arithmetic import arithmetic_problems
    from rollout.prompts.renderer import Renderer

    source = EMBEDDED_DIR if model is None else locate_model(model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    problems = arithmetic_problems(ArithmeticConfig(largest=20), "train", work.problems, 0)
    instruction = None if model is None else BOXED_INSTRUCTION
    prompts = Renderer(tokenizer, PromptConfig(instruction=instruction)).render_all(problems)
    causal_lm: Any
    if model is None:
        torch.manual_seed(0)
        causal_lm = Qwen3ForCausalLM(
            Qwen3Config(
                hidden_size=256,
                intermediate_size=704,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                head_dim=64,
                vocab_size=len(tokenizer),
                tie_word_embeddings=True,
            )
        )
    else:
        causal_lm = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[work.dtype])
    tokenizer.add_special_tokens({"eos_token": "<never>"})
    causal_lm.config.eos_token_id = causal_lm.generation_config.eos_token_id = tokenizer.eos_token_id
    causal_lm.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return [prompt.text for prompt in prompts]


def ours(work: Work, directory: str, texts: list[str], pipe: Connection) -> None:
    """Our arm: the parts of a step as assembled by `rl_engine.train.loop`."""
    from rl_engine.learner.learner import Learner
    from rl_engine.learner.ranks import join_ranks
    from rl_engine.learner.updates import training_samples
    from rl_engine.sampling.publish import Publisher
    from rollout.adapters import AdapterStore
    from rollout.engine import EngineSettings
    from rollout.vllm.engine import VllmEngine

    config = our_config(work, directory)
    prompts, pad_id = our_prompts(directory, texts)
    ranks = join_ranks()
    limits = gap_limits(config)
    learner = Learner(config, ranks, pad_id)
    engine = VllmEngine(EngineSettings(model=directory, dtype=config.model.precision, max_model_len=512, lora_rank=1))
    publisher = Publisher(
        store=AdapterStore(Path(directory) / "adapters"),
        engine=engine,
        learner=learner,
        ranks=ranks,
        canary=prompts[:2],
        sampling=config.sampling,
        limits=limits,
        facts={},
    )
    ref, version = publisher.publish(0), 0
    advantages = [1.0 if index % 2 else -1.0 for index in range(work.samples)]
    weight = 1 / (work.completions * work.max_tokens)
    while pipe.recv():
        start = time.perf_counter()
        version += 1
        groups = engine.generate(prompts, config.sampling, ref, [f"{version}/{i}" for i in range(len(prompts))])
        sampled = time.perf_counter()
        samples = [replace(s, weight=weight) for group in groups for s in training_samples(group, advantages)]
        learner.step([samples], limits)
        learned = time.perf_counter()
        ref = publisher.publish(version)
        end = time.perf_counter()
        print(
            f"  sampling {sampled - start:.2f} s, learning {learned - sampled:.2f} s, publishing {end - learned:.2f} s"
        )
        pipe.send((end - start, sum(len(s.prompt_ids) for s in samples), sum(len(s.completion_ids) for s in samples)))


def our_config(work: Work, directory: str) -> Config:
    return load_config(
        "quickstart.yaml",
        [
            f"model.name={directory}",
            f"model.dtype={work.dtype}",
            f"output_dir={directory}/run",
            f"sampling.n={work.samples}",
            f"sampling.max_tokens={work.max_tokens}",
            "optim.lr=1e-5",
        ],
    )


def our_prompts(directory: str, texts: list[str]) -> tuple[list[Prompt], int]:
    """Return (prompts, padding token). The texts are already rendered, including special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    problems = [Problem(id=text, text=text, answer="0") for text in texts]
    prompts = [Prompt(problem=p, text=p.text, token_ids=row) for p, row in zip(problems, ids, strict=True)]
    return prompts, tokenizer.pad_token_id


def trl(work: Work, directory: str, texts: list[str], pipe: Connection) -> None:
    """TRL's arm: GRPOTrainer, held before each step until it is this arm's turn."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.grpo_trainer import GRPOTrainer

    class Turns(TrainerCallback):
        start = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not pipe.recv():
                raise SystemExit  # the trainer itself would do one more step
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            pipe.send((time.perf_counter() - self.start, counted["prompt"], counted["completion"]))
            counted.update(prompt=0, completion=0)

    tokenizer = AutoTokenizer.from_pretrained(directory)
    counted = {"prompt": 0, "completion": 0}

    def alternate(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float | None]:
        counted["prompt"] += sum(len(tokenizer.encode(prompt, add_special_tokens=False)) for prompt in prompts)
        counted["completion"] += sum(len(ids) for ids in completion_ids)
        return [float(index % 2) for index in range(len(completions))]

    trainer = GRPOTrainer(
        model=directory,
        args=trl_arguments(work, directory),
        processing_class=tokenizer,
        reward_funcs=alternate,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        peft_config=LoraConfig(r=1, lora_alpha=32, target_modules="all-linear"),
        callbacks=[Turns()],
    )
    trainer.train()


def trl_arguments(work: Work, directory: str) -> Any:
    """Arguments for the same objective as ours, without anything that a step does not need."""
    from trl.trainer.grpo_config import GRPOConfig

    from rl_engine.policy.base_model import DTYPES

    return GRPOConfig(
        output_dir=f"{directory}/trl",
        model_init_kwargs={"dtype": DTYPES[work.dtype]},
        max_steps=10**6,
        per_device_train_batch_size=work.completions // work.trl_microbatches,
        gradient_accumulation_steps=work.trl_microbatches,
        num_generations=work.samples,
        max_completion_length=work.max_tokens,
        loss_type="dr_grpo",
        scale_rewards="none",
        beta=0.0,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        shuffle_dataset=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


Arm = Callable[[Work, str, list[str], Connection], None]


def child(arm: Arm, work: Work, directory: str, texts: list[str], pipe: Connection) -> None:
    warnings.simplefilter("ignore")
    arm(work, directory, texts, pipe)


def measure(work: Work, directory: str, texts: list[str], steps: int) -> dict[str, list[Report]]:
    """Run steps of both arms alternately, the first of each as a warm-up."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, arm in (("rl_engine", ours), ("TRL", trl)):
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=child, args=(arm, work, directory, texts, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
    reports: dict[str, list[Report]] = {name: [] for name in pipes}
    for turn in range(steps + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            report: Report = pipe.recv()
            seconds, prompt_tokens, completion_tokens = report
            print(
                f"{name:10s} step {turn}: {seconds:7.2f} s, {prompt_tokens:,} + {completion_tokens:,} tokens",
                flush=True,
            )
            if turn:
                reports[name].append(report)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()  # one that is killed leaves semaphores, about which Python prints a warning
    return reports


def main(
    size: Annotated[str, typer.Argument(help=f"One of {', '.join(WORK)}.")],
    model: Annotated[str | None, typer.Option(help="Directory or hub id; a random 3.2 M model when absent.")] = None,
    steps: Annotated[int, typer.Option(help="Measured steps of each arm, after one that is not.")] = 3,
) -> None:
    """Time whole steps of both alternately."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as directory:
        texts = prepare(WORK[size], model, Path(directory))
        reports = measure(WORK[size], directory, texts, steps)
    counts = {name: {(prompt, completion) for _, prompt, completion in rows} for name, rows in reports.items()}
    if counts["rl_engine"] != counts["TRL"]:
        raise SystemExit(f"the arms did not do the same work: {counts}")
    medians = {name: statistics.median(seconds for seconds, _, _ in rows) for name, rows in reports.items()}
    print(f"medians of {steps} steps: rl_engine {medians['rl_engine']:.2f} s, TRL {medians['TRL']:.2f} s")
    print(f"{size} step of TRL to ours ratio {medians['TRL'] / medians['rl_engine']:.2f}")


if __name__ == "__main__":
    typer.run(main)
