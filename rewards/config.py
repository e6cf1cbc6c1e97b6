"""The `rewards:` section of a run's configuration."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

AnswerForm = Literal["boxed", "answer_is", "gsm8k_hashes"]


class RewardConfig(BaseModel):
    """How completions are graded and what is added to the reward. By default, only the verdict counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(default=2, ge=1, le=256, description="Number of grading processes.")
    timeout_s: float = Field(
        default=5.0,
        gt=0.0,
        le=600.0,
        description="Time limit for grading one completion, in seconds of wall-clock time.",
    )
    memory_mib: int = Field(
        default=1024,
        ge=512,
        le=65536,
        description="Address space that each grading process may take while it grades, in MiB, beside what is loaded.",
    )
    answer_forms: tuple[AnswerForm, ...] = Field(
        default=("boxed",),
        min_length=1,
        max_length=3,
        description="Where to look for the final answer, in this order: boxed (the last \\boxed{…}), answer_is "
        "(a last line 'the answer is …'), gsm8k_hashes (a last line '#### n').",
    )
    format_weight: float = Field(
        default=0.0, ge=0.0, le=10.0, description="Added if the format is right: think tags closed, one box."
    )
    format_think: bool = Field(
        default=False, description="The format term also requires exactly one <think>…</think>, at the start."
    )
    overlong_weight: float = Field(
        default=0.0, ge=0.0, le=10.0, description="Subtracted as a completion approaches max_tokens (DAPO)."
    )
    overlong_buffer_tokens: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Length of the zone before max_tokens in which that penalty grows, in tokens.",
    )
    repetition_weight: float = Field(
        default=0.0, ge=0.0, le=10.0, description="Subtracted in proportion to the share of repeated word n-grams."
    )
    repetition_ngram: int = Field(default=20, ge=2, le=200, description="Words per n-gram.")
    function: str | None = Field(
        default=None,
        description="Your own reward function, 'package.module:name', or one of TRL's, 'trl:name'. It runs in "
        "the grading processes, and its value times function_weight is added to the reward. A "
        "completion for which it returns None is not scored.",
    )
    function_arguments: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="If given, `function` is called once with these, and what it returns is the reward function.",
    )
    function_weight: float = Field(
        default=1.0, ge=-10.0, le=10.0, description="Weight of the function's value in the reward."
    )
    mask_truncated: bool = Field(
        default=False,
        description="Exclude completions cut off by max_tokens from baseline and loss; they count as not scored.",
    )
    mask_unscored: bool = Field(
        default=True,
        description="Exclude completions that could not be graded (timeout, error) from baseline and loss; if "
        "false, their reward is 0. Those for which `function` returns None are always excluded.",
    )
    correct_weight: float = Field(
        default=1.0, ge=0.0, le=10.0, description="Reward for a correct answer; 0 leaves the reward to `function`."
    )

    @property
    def is_accuracy(self) -> bool:
        """Whether the reward is 1 for a right answer, 0 for any other, and nothing else."""
        shaped = self.format_weight or self.overlong_weight or self.repetition_weight
        return self.correct_weight == 1 and self.function is None and not shaped

    @model_validator(mode="after")
    def _terms_have_what_they_need(self) -> Self:
        if self.overlong_weight > 0 and self.overlong_buffer_tokens == 0:
            raise ValueError("overlong_weight needs overlong_buffer_tokens > 0, the length of the soft zone")
        if self.function is None and self.function_arguments:
            raise ValueError("function_arguments needs function, the import path of what takes them")
        if self.function is not None and ":" not in self.function:
            raise ValueError(f"function must look like 'package.module:name', not {self.function!r}")
        module, _, name = (self.function or "").partition(":")
        if "/" in module or module.endswith(".py"):
            place, _, file = module.removesuffix(".py").rpartition("/")
            inside = not place.startswith(("/", "..", "~"))
            dotted = f"{place}/{file}".strip("./").replace("/", ".") if inside else file
            where = "" if inside else f", with {place} on PYTHONPATH or as the current directory"
            raise ValueError(
                f"function is {self.function!r}: name the module, not its file, as in '{dotted}:{name}'{where}"
            )
        return self
