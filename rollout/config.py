"""Settings of the sampling side. Frozen, closed to unknown keys; every field says what it does."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from rollout.frames import BOXED_INSTRUCTION, FRAMES

# Share of a card that an engine takes where nothing else is on it.
WHOLE_CARD = 0.9
# Arguments of a chat template, and of what renders it, that a prompt settles by itself.
WRITTEN_BY_US = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
    }
)


TASK = "`source: reasoning_gym` only: the name of a task of that library, such as `chain_sum` (docs/data.md)."
TASK_SETTINGS = "`source: reasoning_gym` only: the task's own settings, as in `{max_terms: 3}`; else its defaults."


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, values are checked, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    name: str = Field(description="Hub id, directory, or `embedded` for the model that ships with the project.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "bfloat16", description="Precision of the base model; auto: bfloat16 on CUDA, float32 on a CPU."
    )
    revision: str | None = Field(None, description="Hub revision; the default branch when absent.")

    @property
    def precision(self) -> Literal["bfloat16", "float32"]:
        """`dtype` decided: a command replaces auto before anything else (`rl_engine/plan/card.py`)."""
        assert self.dtype != "auto", "the precision has not been decided"
        return self.dtype


class ArithmeticConfig(Section):
    terms: tuple[Annotated[int, Field(ge=2, le=20)], ...] = Field(
        (3, 4, 5, 6),
        min_length=1,
        description="Numbers in an expression, drawn evenly from these. The level.",
    )
    largest: int = Field(50, ge=1, description="Largest number in an expression.")
    count: int = Field(4096, ge=1, description="Different problems generated.")
    wording: str = Field("{expression}=?", description="The question; `{expression}` stands for the sum.")

    @model_validator(mode="after")
    def _wording_has_expression(self) -> Self:
        if "{expression}" not in self.wording:
            raise ValueError("data.arithmetic.wording needs `{expression}` where the sum goes")
        return self


class ColumnsConfig(Section):
    """Which column of a source is what; unset ones follow the source's own table entry."""

    problem: str | None = Field(
        None,
        description="Column of the question, text or a chat; the source's own when absent, like all. "
        "`a.b` is b in the mapping a.",
    )
    answer: str | None = Field(None, description="Column of the reference answer.")
    level: str | None = Field(None, description="Column of the difficulty.")
    subject: str | None = Field(None, description="Column of the subject.")
    id: str | None = Field(None, description="Column of the identifier.")


class SourceConfig(Section):
    """Where problems come from."""

    source: str = Field(
        description="`arithmetic`, `file` (or `jsonl`: your own, `path`), `hub` (any data set of it, `name`), "
        "`reasoning_gym` (a generated `task`), a data set of the sources table (gsm8k, math, …), or `mix` for several "
        "(`data.mix`)."
    )
    path: str | None = Field(
        None,
        description="File read in place of the hub data set, whatever its name: JSON Lines, JSON array, CSV (these "
        "in gzip too), Parquet, Arrow, or a directory of `save_to_disk`.",
    )
    name: str | None = Field(None, description="`source: hub` only: the data set, ORG/NAME.")
    subset: str | None = Field(None, description="`source: hub` only: which of the data set's configurations.")
    split: str | None = Field(
        None, description="Of a hub data set, or of a directory that holds several; `train` when absent."
    )
    revision: str | None = Field(None, description="`source: hub` only: commit, tag or branch; the newest when absent.")
    task: str | None = Field(None, description=TASK)
    task_settings: dict[str, JsonValue] = Field({}, description=TASK_SETTINGS)
    columns: ColumnsConfig = ColumnsConfig()
    limit: int | None = Field(None, ge=1, description="Use only the first N problems of the source.")


class MixedConfig(SourceConfig):
    """One source of a mix."""

    weight: float = Field(1.0, gt=0, description="Its share of the problems drawn, against the other weights.")


class DataConfig(SourceConfig):
    mix: tuple[MixedConfig, ...] = Field(
        (),
        description="`source: mix` only: sources with `weight` each (1 when absent) and the keys above, as in "
        "`[{source: gsm8k, weight: 3}, {source: file, path: my.csv}]`.",
    )
    level: tuple[float, float] | None = Field(
        None,
        description="Use only problems whose level (`columns.level`: its first number, a pass rate too) is within "
        "these two, both included.",
    )
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    shuffle: bool = Field(True, description="Shuffle anew each epoch, from the run's seed.")
    replay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Probability that a problem is in the next epoch when all rewards of its last group were the same "
        "(all right, or all wrong).",
    )
    max_prompt_tokens: int = Field(512, ge=1, description="Longer prompts are dropped, with a count.")

    @model_validator(mode="after")
    def _mix_is_a_source(self) -> Self:
        if (self.source == "mix") != bool(self.mix):
            raise ValueError("data.mix and data.source: mix go together")
        own = ("path", "name", "subset", "split", "revision", "task", "task_settings", "columns", "limit")
        told = [name for name in own if self.mix and getattr(self, name) != type(self).model_fields[name].default]
        if told:
            raise ValueError(f"data.{told[0]} is of one source: with data.mix each has its own, given there")
        return self

    @model_validator(mode="after")
    def _level_is_a_range(self) -> Self:
        if self.level is not None and self.level[0] > self.level[1]:
            raise ValueError(f"data.level is {list(self.level)}: the smaller bound comes first")
        return self


class PromptConfig(Section):
    template: str = Field(
        "chat",
        description=f"`chat` (the model's own template), `frame` (your own) or one of {', '.join(sorted(FRAMES))}.",
    )
    system: str | None = Field(None, description="System message of the chat template.")
    template_arguments: dict[str, bool | int | float | str | None] = Field(
        {}, description="What the model's chat template is told besides, such as `{enable_thinking: false}`."
    )
    instruction: str | None = Field(BOXED_INSTRUCTION, description="Sentence after the problem; null for none.")
    frame: str | None = Field(None, description="Own frame for `template: frame`; `{problem}` stands for the problem.")

    @model_validator(mode="after")
    def _template_exists(self) -> Self:
        known = ["chat", "frame", *sorted(FRAMES)]
        if self.template not in known:
            raise ValueError(f"prompt.template is {self.template!r}; known are {', '.join(known)}")
        if (self.template == "frame") != (self.frame is not None):
            raise ValueError("prompt.frame and prompt.template: frame go together")
        if self.frame is not None and "{problem}" not in self.frame:
            raise ValueError("prompt.frame needs `{problem}` where the problem goes")
        if self.system is not None and self.template != "chat":
            raise ValueError(f"prompt.system needs prompt.template: chat, not {self.template!r}")
        if self.template_arguments and self.template != "chat":
            raise ValueError(f"prompt.template_arguments needs prompt.template: chat, not {self.template!r}")
        for name in self.template_arguments:
            if name in WRITTEN_BY_US or not name.isidentifier():
                raise ValueError(f"prompt.template_arguments.{name}: a prompt is rendered with its own value of that")
        return self


# Values at which nothing is left out.
KEEPS_ALL = {"top_p": 1.0, "min_p": 0.0}


class SamplingConfig(Section):
    n: int = Field(8, ge=1, description="Completions of each problem: the size of a group.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Must be 1 in training: what is left out biases every ratio.")
    top_k: int | None = Field(None, ge=1, description="Must be absent in training, likewise.")
    min_p: float = Field(0.0, ge=0, le=1, description="Must be 0 in training, likewise.")
    max_tokens: int = Field(256, ge=1, description="Longest completion, in tokens.")
    stop: tuple[str, ...] = Field((), description="Strings that end a completion, besides the template's own.")

    def truncation(self) -> dict[str, float]:
        """What of it leaves tokens out of the distribution, by key; empty where every token may be sampled."""
        given: dict[str, float | None] = {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return {key: value for key, value in given.items() if value is not None and value != KEEPS_ALL.get(key)}


SHARERS_OF_MAX = 64


class RolloutConfig(Section):
    placement: Literal["inprocess", "ray"] = Field(
        "inprocess",
        description="Where vLLM runs: inside each learner rank, or in workers here or elsewhere (docs/cluster.md).",
    )
    workers: Annotated[int, Field(ge=1, le=65536)] | Literal["max"] = Field(
        2,
        description="ray only: engines, each in a process of its own; max: as many as the cluster at rollout.address "
        "has room for, while machines come and go.",
    )
    address: str | None = Field(
        None, description="ray only: cluster to join, `auto` or host:port; one of its own on this machine when absent."
    )
    cpus_per_worker: int = Field(1, ge=1, description="ray only: cores of a worker, its threads on the CPU.")
    prompts_per_piece: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="ray only: prompts of a step that a worker is given at a time, on a CPU sampled as one batch. "
        "auto: even shares for all workers (with max for 64 of them), at most 16; a resumed run keeps what it began "
        "with.",
    )
    start_timeout_s: float = Field(600, gt=0, description="ray only: for a worker to start or to load an adapter.")
    piece_timeout_s: float = Field(1800, gt=0, description="ray only: for a worker to sample what it was given.")
    max_restarts: int = Field(
        8,
        ge=0,
        description="ray only: incidents in a row after which a pool without workers gives up (docs/cluster.md).",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        le=64,
        description="ray only: steps that sampling runs ahead of learning, and so the updates that the adapter which "
        "samples may lie behind; 0 is strictly on-policy.",
    )
    leg_tokens: int | None = Field(
        None,
        ge=1,
        description="ray and a max_staleness of 2 or more: tokens that one version samples of a completion before the "
        "next version goes on with it (partial rollouts); one version samples the whole when absent.",
    )
    max_num_seqs: int = Field(
        512,
        ge=1,
        description="Completions sampled side by side by one engine. CUDA with ray: with fewer a worker takes further "
        "pieces.",
    )
    kv_cache_gib: float = Field(2.0, gt=0, description="CPU only: memory for keys and values.")
    memory_fraction: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="CUDA only: share of the card for the sampler. auto: what the learner leaves of it by the estimate "
        "of memory, at most 0.9; 0.9 of a card that a worker has to itself.",
    )
    tensor_parallel_size: int = Field(1, ge=1, description="CUDA only: cards that share one sampler.")
    sleep: bool | Literal["auto"] = Field(
        "auto",
        description="CUDA only: free the sampler's memory while the learner works. auto: where the estimate of memory "
        "says that both do not fit.",
    )
    max_kl: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="Largest sampler/learner KL (nats a token): the run stops above it, where a step has few tokens by "
        "more than chance explains. auto: 1e-6 in float32, 0.01 in bfloat16.",
    )
    max_logprob_gap: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="What log-probabilities of one token may differ by between learner and sampler (nats); the run "
        "stops where more than one token in a thousand is beyond, of few tokens more than chance explains. auto: 0.01 "
        "in float32, 2 in bfloat16.",
    )

    @property
    def card_share(self) -> float:
        """`memory_fraction` as a number: on CUDA a run replaces auto first of all (`rl_engine/plan/card.py`)."""
        assert self.memory_fraction != "auto", "the sampler's share of the card has not been decided"
        return self.memory_fraction

    @property
    def sharers(self) -> int:
        """Workers that `prompts_per_piece: auto` is made for. Where they come and go it is the same number: what a
        completion is follows from the configuration, not from who is there."""
        return SHARERS_OF_MAX if self.workers == "max" else self.workers

    @model_validator(mode="after")
    def _max_is_of_a_cluster(self) -> Self:
        if self.workers == "max" and self.placement == "ray" and self.address is None:
            raise ValueError(
                "rollout.workers is max, and a cluster that the run starts itself has room for as many as it is asked "
                "for: give a number, or the cluster to join in rollout.address"
            )
        return self
