"""Names of metrics → charts, the same ones on the report's page and in plots for a paper."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve of a chart."""

    key: str
    """Name in metrics.jsonl."""
    label: str
    low: str = ""
    """Metrics that hold the ends of its interval, if it has one."""
    high: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves that share a y axis."""

    name: str
    """Stem of the file it is written to."""
    title: str
    unit: str
    """Label of the y axis. With `%`, values are stored as fractions and shown in per cent."""
    series: tuple[Series, ...]
    log: bool = False
    """Whether the axis is logarithmic, unless the reader switches it."""
    from_zero: bool = True
    """Whether the axis starts at zero, so that heights are comparable."""
    total: Series | None = None
    """The sum of the curves if they are parts of a whole: these are stacked; of several runs only the sum is drawn."""
    group: str = "Quality"
    """The page's heading that it appears under: one of `GROUPS`."""
    diagnostic: bool = False
    """Whether the page hides it by default: it is for when something looks wrong."""
    reaches: float = 0.0
    """The least upper end of the axis, in `unit`, so that one completion in a thousand does not fill the chart."""


GROUPS = ("Quality", "Length", "Policy", "Sampler check", "Adapter", "System")


# Verdicts that say that no answer was judged.
UNJUDGED = ("no_answer", "unparseable", "timeout", "error")
SUITE_TITLES = {
    "held_out": "held-out problems",
    "gsm8k": "GSM8K",
    "math500": "MATH-500",
    "math": "MATH",
    "aime2024": "AIME 2024",
    "aime2025": "AIME 2025",
    "aime2026": "AIME 2026",
}

REWARD = Chart(
    name="reward",
    title="Reward",
    unit="mean of completions",
    series=(Series(key="reward/mean", label="reward"),),
)
COT_LENGTH = Chart(
    name="cot_length",
    title="CoT length",
    unit="tokens/completion",
    series=(
        Series(key="completion/tokens_mean", label="all"),
        Series(key="completion/tokens_mean_correct", label="right"),
        Series(key="completion/tokens_mean_wrong", label="wrong"),
    ),
    group="Length",
)
CHARTS = (
    Chart(
        name="sampled_accuracy",
        title="Accuracy while sampling",
        unit="%",
        series=(Series(key="reward/accuracy", label="right"),),
        reaches=10,
    ),
    Chart(
        name="entropy",
        title="Entropy of the policy",
        unit="nats/token",
        series=(Series(key="policy/entropy", label="entropy"),),
        group="Policy",
    ),
    Chart(
        name="kl_base",
        title="KL to the base model",
        unit="nats/token",
        series=(Series(key="policy/kl_base", label="KL"),),
        group="Policy",
    ),
    Chart(
        name="unjudged",
        title="No judged answer",
        unit="% of completions",
        series=tuple(Series(key=f"reward/verdict/{name}", label=name.replace("_", " ")) for name in UNJUDGED),
        reaches=10,
    ),
    Chart(
        name="no_signal",
        title="Groups without a signal",
        unit="% of groups",
        series=(Series(key="groups/no_signal_frac", label="all rewards equal"),),
        group="Policy",
        reaches=10,
    ),
    Chart(
        name="truncated",
        title="Cut off by the token limit",
        unit="% of completions",
        series=(Series(key="completion/truncated_frac", label="truncated"),),
        group="Length",
        reaches=10,
    ),
    Chart(
        name="sampler_kl",
        title="Sampler gap: KL",
        unit="nats/token",
        series=(Series(key="sampler/kl", label="KL"),),
        log=True,
        from_zero=False,
        group="Sampler check",
    ),
    Chart(
        name="sampler_gap",
        title="Sampler gap: furthest token",
        unit="nats",
        series=(Series(key="sampler/logprob_gap_max", label="largest gap"),),
        log=True,
        from_zero=False,
        group="Sampler check",
    ),
    Chart(
        name="clipped",
        title="Held by a clipping bound",
        unit="% of tokens",
        series=(
            Series(key="loss/clip_low_frac", label="lower bound"),
            Series(key="loss/clip_high_frac", label="upper bound"),
        ),
        group="Policy",
        diagnostic=True,
        reaches=10,
    ),
    Chart(
        name="ratio",
        title="Ratio of probabilities in the loss",
        unit="policy/behaviour",
        series=tuple(Series(key=f"ratio/{name}", label=name) for name in ("p01", "p50", "p99", "max")),
        from_zero=False,
        group="Policy",
        diagnostic=True,
    ),
    Chart(
        name="grad_norm",
        title="Gradient norm",
        unit="before clipping",
        series=(Series(key="grad_norm", label="norm"),),
        group="Policy",
        diagnostic=True,
    ),
    Chart(
        name="loss",
        title="Loss",
        unit="of the step",
        series=(Series(key="loss", label="loss"),),
        from_zero=False,
        group="Policy",
        diagnostic=True,
    ),
    Chart(
        name="adapter_norms",
        title="Inside the adapter: norms",
        unit="median over modules",
        series=(
            Series(key="inside/norm_a", label="‖A‖₂"),
            Series(key="inside/norm_b", label="‖B‖₂"),
            Series(key="inside/norm_update", label="‖ΔW‖F"),
        ),
        group="Adapter",
    ),
    Chart(
        name="stable_rank",
        title="Inside the adapter: stable rank of ΔW",
        unit="median over modules",
        series=(Series(key="inside/stable_rank", label="‖ΔW‖²F / ‖ΔW‖²₂"),),
        group="Adapter",
    ),
    Chart(
        name="time",
        title="Time of a step",
        unit="s",
        series=tuple(
            Series(key=f"time/{phase}_s", label=label)
            for phase, label in (("rollout", "sample"), ("grade", "grade"), ("learn", "learn"), ("sync", "sync"))
        ),
        total=Series(key="time/step_s", label="step"),
        group="System",
    ),
    Chart(
        name="workers_busy",
        title="Sampling workers at work",
        unit="% of a step",
        series=(
            Series(key="workers/busy_frac", label="mean"),
            Series(key="workers/busy_min_frac", label="least busy"),
        ),
        group="System",
        diagnostic=True,
        reaches=10,
    ),
    Chart(
        name="workers_wait",
        title="Waiting around sampling workers",
        unit="s",
        series=(
            Series(key="workers/queue_s", label="a piece for a worker"),
            Series(key="workers/tail_s", label="workers for the last pieces"),
        ),
        group="System",
        diagnostic=True,
    ),
    Chart(
        name="throughput",
        title="Throughput",
        unit="tokens/s",
        series=(Series(key="throughput/tokens_per_s", label="completion tokens over the step's time"),),
        group="System",
    ),
    Chart(
        name="memory",
        title="Peak memory",
        unit="GiB",
        series=tuple(
            Series(key=f"memory/{phase}_gib", label=label)
            for phase, label in (("rollout", "sample"), ("learn", "learn"), ("sync", "sync"))
        ),
        group="System",
        diagnostic=True,
    ),
)


# Charts of supervised runs only.
SUPERVISED = (
    Chart(
        name="test_loss",
        title="Log loss on test examples",
        unit="nats/token",
        series=(Series(key="test/log_loss", label="test"),),
    ),
)


def titles_of(metric: str) -> tuple[str, str]:
    """Title and unit of an axis for this metric alone; the metric's name if no chart has it."""
    for chart in charts_of({metric}):
        for place, series in enumerate(chart.series):
            if series.key == metric:
                return chart.title if place == 0 else f"{chart.title}: {series.label}", chart.unit
    return metric, ""


def suites_of(keys: Collection[str]) -> list[str]:
    """Names of the suites that have a score among these metrics."""
    return sorted({key.split("/")[1] for key in keys if key.startswith("eval/") and key.endswith("/avg")})


def accuracy_chart(*suites: str) -> Chart:
    """Scores with their 95 % intervals."""
    title = SUITE_TITLES.get(suites[0], suites[0]) if len(suites) == 1 else "held-out problems"
    return Chart(
        name="_".join(("accuracy", *suites)),
        title=f"Accuracy on {title}",
        unit="%",
        series=tuple(
            Series(
                key=f"eval/{suite}/avg",
                label=SUITE_TITLES.get(suite, suite),
                low=f"eval/{suite}/low",
                high=f"eval/{suite}/high",
            )
            for suite in suites
        ),
        reaches=10,
    )


def charts_of(keys: Collection[str]) -> list[Chart]:
    """The charts that have data, by group; within each group the diagnostic ones come last."""
    suites = suites_of(keys)
    shaping = sorted(key for key in keys if key.startswith("reward/term/"))
    terms = tuple(Series(key=key, label=key.removeprefix("reward/term/")) for key in shaping)
    reward = replace(REWARD, series=(*REWARD.series, *terms))
    length = Chart(
        name="eval_length",
        title="CoT length in evaluation",
        unit="tokens/completion",
        series=tuple(Series(key=f"eval/{suite}/tokens_mean", label=SUITE_TITLES.get(suite, suite)) for suite in suites),
        group="Length",
    )
    scores = [accuracy_chart(suite) for suite in suites]
    everything = [*scores, *SUPERVISED, reward, COT_LENGTH, *([length] if suites else []), *CHARTS]
    drawn = [chart for chart in everything if any(series.key in keys for series in chart.series)]
    return sorted(drawn, key=lambda chart: (GROUPS.index(chart.group), chart.diagnostic))
