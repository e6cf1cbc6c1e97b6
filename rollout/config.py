"""Settings of the sampling side: frozen, closed to unknown keys, every field with a description."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from rollout.frames import BOXED_INSTRUCTION, FRAMES

# Fraction of a card's memory that an engine takes if it has the card to itself.
WHOLE_CARD = 0.9
LARGEST_SEED = 2**32 - 1
"""NumPy accepts none larger, and vLLM and transformers pass their seeds to NumPy."""
# Arguments of a chat template, and of its rendering, that the renderer sets itself.
WRITTEN_BY_US = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
    }
)


# Keys of every data source, both for reinforcement learning and for supervised training.
HubName = Annotated[str | None, Field(description="`source: hub` only: the dataset, ORG/NAME.")]
HubSubset = Annotated[
    str | None, Field(description="`source: hub` only: which of the dataset's configurations to read.")
]
HubRevision = Annotated[
    str | None, Field(description="`source: hub` only: commit, tag or branch; the newest if unset.")
]
SplitName = Annotated[
    str | None, Field(description="Split of a hub dataset, or of a directory that holds several; `train` if unset.")
]
TaskName = Annotated[
    str | None,
    Field(description="`source: reasoning_gym` only: a task of that library, such as `chain_sum` (docs/data.md)."),
]
TaskSettings = Annotated[
    dict[str, JsonValue],
    Field(
        description="`source: reasoning_gym` only: the task's settings, such as `{max_terms: 3}`; its defaults "
        "otherwise."
    ),
]


class Section(BaseModel):
    """A section of a configuration: unknown keys are errors, values are validated, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    name: str = Field(description="Hub id, local directory, or `embedded` for the model that ships with the project.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "bfloat16", description="Precision of the base model. auto: bfloat16 on CUDA, float32 on a CPU."
    )
    revision: str | None = Field(
        None, description="Hub revision; if unset, the default branch, at the commit that a run begins with."
    )

    @property
    def precision(self) -> Literal["bfloat16", "float32"]:
        """`dtype` without auto, which every command resolves first (`rl_engine/plan/card.py`)."""
        assert self.dtype != "auto", "the precision has not been decided"
        return self.dtype


class ArithmeticConfig(Section):
    terms: tuple[Annotated[int, Field(ge=2, le=20)], ...] = Field(
        (3, 4, 5, 6),
        min_length=1,
        description="How many numbers an expression has, drawn uniformly from these; also the problem's level.",
    )
    largest: int = Field(50, ge=1, description="Largest number in an expression.")
    count: int = Field(4096, ge=1, description="How many distinct problems to generate.")
    wording: str = Field("{expression}=?", description="Wording of the question; `{expression}` stands for the sum.")

    @model_validator(mode="after")
    def _wording_has_expression(self) -> Self:
        if "{expression}" not in self.wording:
            raise ValueError("data.arithmetic.wording needs `{expression}` where the sum goes")
        return self


class ColumnsConfig(Section):
    """The role of each column of a source; unset roles follow the source's entry in the table."""

    problem: str | None = Field(
        None,
        description="Column that holds the question, as text or a chat. Columns left unset are the source's "
        "own. `a.b` is field b of mapping a.",
    )
    answer: str | None = Field(None, description="Column that holds the reference answer.")
    level: str | None = Field(None, description="Column that holds the difficulty.")
    subject: str | None = Field(None, description="Column that holds the subject.")
    id: str | None = Field(None, description="Column that holds the identifier.")


class SourceConfig(Section):
    """Where problems come from."""

    source: str = Field(
        description="`arithmetic` (generated), `file` (your own, at `path`; alias `jsonl`), `hub` (any hub "
        "dataset, by `name`), `reasoning_gym` (generated, by `task`), a built-in dataset (gsm8k, "
        "math, …), or `mix` (several, in `data.mix`)."
    )
    path: str | None = Field(
        None,
        description="File to read instead of the hub dataset: JSON Lines, a JSON array, CSV (each also "
        "gzipped), Parquet, Arrow, or a `save_to_disk` directory. The format is recognized "
        "whatever the file's name.",
    )
    name: HubName = None
    subset: HubSubset = None
    split: SplitName = None
    revision: HubRevision = None
    task: TaskName = None
    task_settings: TaskSettings = {}
    columns: ColumnsConfig = ColumnsConfig()
    limit: int | None = Field(None, ge=1, description="Use only the first N problems of the source.")


class MixedConfig(SourceConfig):
    """One source of a mix."""

    weight: float = Field(
        1.0, gt=0, description="Share of the problems drawn from this source, relative to the other weights."
    )


class DataConfig(SourceConfig):
    mix: tuple[MixedConfig, ...] = Field(
        (),
        description="`source: mix` only: the sources, each with a `weight` (default 1) and the keys above, "
        "such as `[{source: gsm8k, weight: 3}, {source: file, path: my.csv}]`.",
    )
    level: tuple[float, float] | None = Field(
        None,
        description="Use only problems whose level lies within these two bounds, both included. The level is "
        "the first number in `columns.level`, which may be a pass rate.",
    )
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    shuffle: bool = Field(True, description="Reshuffle every epoch, from the run's seed.")
    replay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Probability that a problem returns in the next epoch if all rewards in its last group "
        "were equal (all right, or all wrong).",
    )
    max_prompt_tokens: int = Field(512, ge=1, description="Drop prompts longer than this and report how many.")

    @model_validator(mode="after")
    def _mix_is_a_source(self) -> Self:
        if (self.source == "mix") != bool(self.mix):
            raise ValueError("data.mix and data.source: mix go together")
        own = ("path", "name", "subset", "split", "revision", "task", "task_settings", "columns", "limit")
        named = [name for name in own if self.mix and getattr(self, name) != type(self).model_fields[name].default]
        if named:
            raise ValueError(f"data.{named[0]} applies to one source: with data.mix, give it for each of them")
        return self

    @model_validator(mode="after")
    def _level_is_a_range(self) -> Self:
        if self.level is not None and self.level[0] > self.level[1]:
            raise ValueError(f"data.level is {list(self.level)}: the smaller bound comes first")
        return self


class PromptConfig(Section):
    template: str = Field(
        "chat",
        description=f"`chat` (the model's own template), `frame` (your own), or one of {', '.join(sorted(FRAMES))}.",
    )
    system: str | None = Field(None, description="System message for the chat template.")
    template_arguments: dict[str, bool | int | float | str | None] = Field(
        {}, description="Further arguments for the model's chat template, such as `{enable_thinking: false}`."
    )
    instruction: str | None = Field(BOXED_INSTRUCTION, description="Sentence added after the problem; null for none.")
    frame: str | None = Field(
        None, description="Your own frame for `template: frame`; `{problem}` stands for the problem."
    )

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


# Values that keep every token.
KEEPS_ALL = {"top_p": 1.0, "min_p": 0.0}


class SamplingConfig(Section):
    n: int = Field(8, ge=1, description="Completions per problem: the size of a group; at least 2 in training.")
    temperature: float = Field(
        1.0, ge=0, le=2, description="Sampling temperature; 0 is greedy, and refused in training."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Must be 1 in training: leaving tokens out biases the importance ratios."
    )
    top_k: int | None = Field(None, ge=1, description="Must be unset in training, for the same reason.")
    min_p: float = Field(0.0, ge=0, le=1, description="Must be 0 in training, for the same reason.")
    max_tokens: int = Field(256, ge=1, description="Maximum length of a completion, in tokens.")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="Strings that end a completion, in addition to the template's own."
    )

    def truncation(self) -> dict[str, float]:
        """The settings that remove tokens from the distribution, by key; empty if every token may be sampled."""
        given: dict[str, float | None] = {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return {key: value for key, value in given.items() if value is not None and value != KEEPS_ALL.get(key)}


SHARERS_OF_MAX = 64


class RolloutConfig(Section):
    placement: Literal["inprocess", "ray"] = Field(
        "inprocess",
        description="Where vLLM runs. inprocess: inside each learner rank; ray: in workers, on this machine "
        "or others (docs/cluster.md).",
    )
    workers: Annotated[int, Field(ge=1, le=65536)] | Literal["max"] = Field(
        2,
        description="ray only: number of engines, each in its own process. max: as many as the cluster at "
        "rollout.address has room for, as machines come and go.",
    )
    address: str | None = Field(
        None,
        description="ray only: cluster to join, `auto` or host:port; if unset, the run starts its own on this machine.",
    )
    cpus_per_worker: int = Field(
        1, ge=1, description="ray only: cores per worker; on a CPU, also its number of threads."
    )
    prompts_per_piece: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="ray only: how many prompts of a step a worker is given at a time; a CPU samples them as "
        "one batch. auto: an even share for each worker (with max, for each of 64), at most 16; a "
        "resumed run keeps its original value.",
    )
    start_timeout_s: float = Field(
        600, gt=0, description="ray only: time limit for a worker to start, or to load an adapter, in seconds."
    )
    piece_timeout_s: float = Field(
        1800,
        gt=0,
        description="ray only: time limit for a worker to sample one piece (the prompts it is given at a "
        "time), in seconds.",
    )
    max_restarts: int = Field(
        8,
        ge=0,
        description="ray only: failures in a row after which a pool without workers gives up (docs/cluster.md).",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        le=64,
        description="ray only: how many steps sampling may run ahead of learning, and so how many updates the "
        "sampling adapter may be behind. 0 is strictly on-policy.",
    )
    leg_tokens: int | None = Field(
        None,
        ge=1,
        description="ray and max_staleness of 2 or more: how many tokens of a completion one version samples "
        "before the next version continues it (partial rollouts). If unset, one version samples "
        "the whole completion.",
    )
    max_num_seqs: int = Field(
        512,
        ge=1,
        description="How many completions one engine samples at the same time. With ray on CUDA, a worker "
        "below this number takes further pieces.",
    )
    kv_cache_gib: float = Field(2.0, gt=0, description="CPU only: size of the KV cache, in GiB.")
    memory_fraction: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="CUDA only: share of the GPU's memory for the sampler. auto: what the memory estimate "
        "leaves beside the learner, at most 0.9; 0.9 on a GPU that a worker has to itself.",
    )
    tensor_parallel_size: int = Field(1, ge=1, description="CUDA only: how many GPUs share one sampler.")
    sleep: bool | Literal["auto"] = Field(
        "auto",
        description="CUDA only: free the sampler's memory while the learner works. auto: only if, by the "
        "memory estimate, the two do not fit together.",
    )
    max_kl: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="Largest KL between sampler and learner, in nats per token; the run stops above it, in a step with "
        "few tokens only if chance does not explain it. auto: 1e-6 in float32, 0.01 in bfloat16.",
    )
    max_logprob_gap: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="Largest difference between learner and sampler in the log-probability of one token, in nats; the "
        "run stops if more than one token in a thousand exceeds it, in a step with few tokens only if chance does not "
        "explain it. auto: 0.01 in float32, 2 in bfloat16.",
    )

    @property
    def card_share(self) -> float:
        """`memory_fraction` as a number. On CUDA a run resolves auto first (`rl_engine/plan/card.py`)."""
        assert self.memory_fraction != "auto", "the sampler's share of the card has not been decided"
        return self.memory_fraction

    @property
    def sharers(self) -> int:
        """Number of workers that `prompts_per_piece: auto` assumes. It does not change as workers come and go:
        completions must depend on the configuration, not on which workers are present."""
        return SHARERS_OF_MAX if self.workers == "max" else self.workers

    @model_validator(mode="after")
    def _max_is_of_a_cluster(self) -> Self:
        if self.workers == "max" and self.placement == "ray" and self.address is None:
            raise ValueError(
                "rollout.workers is max, and a cluster that the run starts itself has room for as many as it is asked "
                "for: give a number, or the cluster to join in rollout.address"
            )
        return self
