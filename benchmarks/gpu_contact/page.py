"""Outcomes → a Markdown page whose tables can go into docs/benchmarks.md and docs/gpu.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.gpu_contact.running import Outcome
from benchmarks.gpu_contact.sizes import ADAPTER, IDLE

Row = dict[str, Any]
MFU_GOAL, ADAPTER_GOAL, SAMPLING_GOAL = 0.40, 0.90, 20_000
GOAL_TOKENS = 128
"""Completions side by side to which the sampling goals refer."""


def rows_of(outcomes: Iterable[Outcome], kind: str) -> list[Row]:
    """All figures of one kind, in the order of measurement."""
    return [row for outcome in outcomes for row in outcome.figures if row["kind"] == kind]


def card_of(outcomes: Iterable[Outcome]) -> str:
    """The card's name according to torch."""
    return next((row["card"] for row in rows_of(outcomes, "machine") if "card" in row), "an unknown card")


def sampled(outcomes: Iterable[Outcome]) -> dict[str, Row]:
    """Each sampling arm, with the median speed over its rounds."""
    rounds: dict[str, list[Row]] = {}
    for row in rows_of(outcomes, "sampling"):
        rounds.setdefault(row["arm"], []).append(row)
    return {
        arm: {**rows[0], "tokens_per_s": median(row["tokens_per_s"] for row in rows)} for arm, rows in rounds.items()
    }


def adapter_ratio(outcomes: Sequence[Outcome]) -> float | None:
    """Tokens/s with a rank-1 adapter divided by tokens/s without, in one engine; None if either was not measured."""
    speeds = {arm: row["tokens_per_s"] for arm, row in sampled(outcomes).items()}
    return speeds[ADAPTER] / speeds[IDLE] if {ADAPTER, IDLE} <= speeds.keys() else None


def number(value: Any, digits: int = 0) -> str:
    """A figure for a table; a dash if there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |".replace("\n", " ")

    return [line(head), f"|{'---|' * len(head)}", *map(line, rows)]


def page(outcomes: Sequence[Outcome], sizes: str) -> str:
    """The whole page, for the stages that have ended."""
    sections = [
        *_head(outcomes, sizes),
        *_stages(outcomes, sizes),
        *_machine(outcomes),
        *_runs(outcomes),
        *_sampling(outcomes),
        *_learner(outcomes),
        *_goals(outcomes, sizes),
        *_logs(outcomes),
    ]
    return "\n".join(sections) + "\n"


def _head(outcomes: Sequence[Outcome], sizes: str) -> list[str]:
    facts = {name: value for row in rows_of(outcomes, "machine") for name, value in row.items() if name != "kind"}
    described = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "card" and value)
    meant = (
        []
        if sizes == "card"
        else ["", "**On a CPU, with tiny shapes: these figures say that the stages run, and nothing of speed.**"]
    )
    return [f"# First contact: {card_of(outcomes)}", "", described or "nothing is known of the machine", *meant]


def _stages(outcomes: Sequence[Outcome], sizes: str) -> list[str]:
    """The table of stages; on a card with the planned seconds, which are for a card."""
    planned = sizes == "card"
    rows = [
        (
            *(one.name, one.asks, f"{one.outcome}: {one.reason}" if one.reason else one.outcome, f"{one.seconds:.0f}"),
            *([f"{one.expected_s:.0f}"] if planned else []),
        )
        for one in outcomes
    ]
    passed = sum(one.passed for one in outcomes)
    heading = f"## Stages: {passed} of {len(outcomes)} passed"
    head = ("stage", "asks", "outcome", "seconds", *(["expected"] if planned else []))
    return ["", heading, "", *table(head, rows)]


def _machine(outcomes: Sequence[Outcome]) -> list[str]:
    imports = rows_of(outcomes, "import")
    ceilings = {name: value for row in rows_of(outcomes, "ceiling") for name, value in row.items()}
    lines = ["", "## The machine", ""]
    if "product_tflops" in ceilings:
        side = f"{ceilings['side']:,}"
        lines += [
            f"- matrix product {side} × {side} × {side}, {ceilings['dtype']}: {ceilings['product_tflops']:,.1f} TFLOP/s"
        ]
    if "copy_gb_s" in ceilings:
        lines += [f"- copy within memory, read and written: {ceilings['copy_gb_s']:,.0f} GB/s"]
    found = ", ".join(f"{row['module']} {row['found']}" for row in imports if row["ok"])
    missing = [f"- not there: {row['module']} ({row['found']})" for row in imports if not row["ok"]]
    return [*lines, f"- imported: {found or 'nothing'}", *missing]


def _runs(outcomes: Sequence[Outcome]) -> list[str]:
    lines = []
    for row in rows_of(outcomes, "trained"):
        before, after = share(row["held_out_before"]), share(row["held_out_after"])
        lines += ["", f"The {row['run']}: {row['steps']} steps, held out {before} → {after}."]
    for row in rows_of(outcomes, "resumed"):
        whole = "each of them once" if row["whole"] else "**not each of them once**"
        lines += ["", f"Resumed: {row['steps']} steps on record, {whole}."]
    steps = rows_of(outcomes, "step")
    if steps:
        head = (
            "run",
            "",
            "sampling s",
            "learning s",
            "sync s",
            "step s",
            "sampled tokens/s",
            "tokens/s",
            "gap, nats",
            "KL",
            "peak GiB",
        )
        cells = [
            (
                row["run"],
                row["which"],
                *(number(row[phase], 2) for phase in ("rollout_s", "learn_s", "sync_s", "step_s")),
                number(row["sampling_tokens_per_s"]),
                number(row["tokens_per_s"]),
                "–" if row["gap_max"] is None else f"{row['gap_max']:.2g}",
                "–" if row["kl"] is None else f"{row['kl']:.2g}",
                number(row["peak_gib"], 1),
            )
            for row in steps
        ]
        lines += ["", *table(head, cells)]
    return ["", "## Runs", *lines] if lines else []


def _sampling(outcomes: Sequence[Outcome]) -> list[str]:
    found = sampled(outcomes).values()
    if not found:
        return []
    cells = [(row["arm"], f"{row['sequences']:,}", f"{row['tokens']:,}", number(row["tokens_per_s"])) for row in found]
    ratio = adapter_ratio(outcomes)
    described = [] if ratio is None else ["", f"With an adapter: {ratio:.2f} of the speed without, in one engine."]
    return [
        "",
        "## Sampling",
        "",
        *table(("adapter", "sequences", "tokens each", "tokens/s"), cells),
        *described,
        *_waits(outcomes),
    ]


def _waits(outcomes: Sequence[Outcome]) -> list[str]:
    """What a decoding step waits for."""
    lines = []
    for row in rows_of(outcomes, "decoding step"):
        whole, busy = (
            None if row[name] is None else row[name] / row["tokens"] * 1e3 for name in ("seconds", "kernel_s")
        )
        lines += [
            "",
            f"A step of decoding with the adapter: {number(whole, 1)} ms, the card at work {number(busy, 1)} of them.",
        ]
    cells = [
        (f"`{row['function']}`, {row['where']}", row["calls"], share(row["seconds"] / row["whole_s"]))
        for row in rows_of(outcomes, "host")
    ]
    return [*lines, "", *table(("the host's functions", "calls", "of its time, profiled"), cells)] if cells else lines


def _learner(outcomes: Sequence[Outcome]) -> list[str]:
    found = rows_of(outcomes, "learner")
    if not found:
        return []
    cells = [
        (
            row["model"],
            row["arm"],
            row["layout"],
            number(row["tokens"]),
            number(row["seconds"], 4),
            number(row["tokens_per_s"]),
            number(row["tflops"], 1),
            share(row["mfu"]),
            number(row["kernels"]),
            number(row["kernel_s"], 4),
            number(row["peak_gib"], 1),
        )
        for row in found
    ]
    head = (
        *("model", "arm", "layout", "tokens", "seconds", "tokens/s", "TFLOP/s", "of the product"),
        *("kernels", "their seconds", "peak GiB"),
    )
    left = [f"- {row['arm']}: left out, {row['why']}" for row in rows_of(outcomes, "left out")]
    return ["", "## The learner: forward and backward", "", *table(head, cells), *([""] if left else []), *left]


def _goals(outcomes: Sequence[Outcome], sizes: str) -> list[str]:
    """Results against the goals; nothing on a CPU, where the goals do not apply."""
    if sizes != "card":
        return []
    mfus = [row["mfu"] for row in rows_of(outcomes, "learner")]
    best = max(mfus, default=None)
    ratio = adapter_ratio(outcomes)
    speed = sampled(outcomes).get(ADAPTER, {}).get("tokens_per_s")

    def met(value: float | None, goal: float) -> str:
        return "not measured" if value is None else "met" if value >= goal else "**not met**"

    rows = [
        ("learner, best arm, of the measured product", f"{MFU_GOAL:.0%}", share(best), met(best, MFU_GOAL)),
        ("sampling with an adapter against without", f"{ADAPTER_GOAL:.0%}", share(ratio), met(ratio, ADAPTER_GOAL)),
        (
            f"tokens/s at {GOAL_TOKENS} sequences, with an adapter",
            number(SAMPLING_GOAL),
            number(speed),
            met(speed, SAMPLING_GOAL),
        ),
    ]
    return ["", "## Goals", "", *table(("what", "goal", "measured", ""), rows)]


def _logs(outcomes: Sequence[Outcome]) -> list[str]:
    """The doctor's report, and the last lines of every stage that did not pass."""
    shown = [one for one in outcomes if one.last_lines and (one.name == "doctor" or not one.passed)]
    lines = []
    for one in shown:
        lines += ["", f"### {one.name}: {one.outcome}", "", "```", *one.last_lines, "```"]
    return ["", "## Last lines of logs", *lines] if shown else []
