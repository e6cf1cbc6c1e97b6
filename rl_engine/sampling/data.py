"""Problems → the prompts a run trains on; unusable rows are dropped with a reason and a count."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from datafiles.dropped import Dropped
from rewards import Grader, Verdict
from rl_engine.config import Config
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.collective import check_same
from rollout.prompts.cursor import Cursor, Mixed
from rollout.prompts.problems import load_problems, turns_left_out
from rollout.prompts.renderer import Renderer
from rollout.types import Problem, Prompt

# Hardly any tokenizer has longer tokens, so a text of more than this times the token limit is dropped untokenized.
CHARACTERS_PER_TOKEN = 256


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The prompts, and why the other rows were dropped."""

    prompts: list[Prompt]
    dropped: Dropped = field(default_factory=Dropped)
    unplaced: int = 0
    """Problems with a system turn that the prompt template has no place for."""

    def describe(self) -> str:
        """What was kept and dropped, as text for the user."""
        total = len(self.prompts) + self.dropped.counts.total()
        return "; ".join([f"{len(self.prompts):,} of {total:,} problems", *self.dropped.lines()])

    @property
    def extra_columns(self) -> list[str]:
        """Columns that the problems provide to a reward function."""
        return list(dict.fromkeys(name for prompt in self.prompts for name in prompt.problem.extra))

    def repetitions(self, places: int) -> list[str]:
        """Warnings about turns that are left out, problems that the file repeats, and problems that occur several times
        in a step of `places` problems."""
        different = len({" ".join(prompt.problem.text.split()) for prompt in self.prompts})
        notes = []
        if self.unplaced:
            notes.append(
                f"warning: {self.unplaced:,} problems have a system turn, and prompt.template has no place for one: it "
                "is left out"
            )
        notes += [f"warning: {note}" for note in turns_left_out([prompt.problem for prompt in self.prompts])]
        if different < len(self.prompts):
            notes.append(f"warning: only {different:,} of {len(self.prompts):,} problems are different")
        if different < places:
            notes.append(
                f"warning: a step takes {places:,} problems, of which {different:,} can differ: each is sampled "
                f"{places / different:.1f} times in a step (lower train.problems_per_step, or add problems)"
            )
        return notes


def digest_in_order(problems: Sequence[Problem]) -> str:
    """A digest of the problems and their reference answers, which ranks share by their places."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(f"{problem.text}\0{problem.answer}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()


def prepare(config: Config, renderer: Renderer, grader: Grader, ranks: Ranks) -> TrainingData:
    """Load, check and render the training problems.

    Drops problems whose reference answer does not grade correct against itself, as no completion could be rewarded, and
    prompts over the limit, which would leave no room to answer. Raises `ValueError` when nothing is left, or when the
    ranks read different problems.
    """
    rewards = config.rewards
    loaded = load_problems(
        config.data,
        split="train",
        seed=config.seed,
        need_answer=rewards.correct_weight > 0,
        with_extra=rewards.function is not None,
    )
    check_same(ranks, {"data": digest_in_order(loaded.problems)})
    mine = ranks.share(loaded.problems)
    checks = ranks.gather(grader.check_references([one.answer for one in mine], [one.entry for one in mine]))
    dropped, prompts = loaded.dropped, []
    limit = config.data.max_prompt_tokens
    for problem, check in zip(loaded.problems, checks, strict=True):
        if problem.answer and check.verdict is not Verdict.CORRECT:
            dropped.drop(f"reference does not grade correct against itself ({check.verdict})", problem.id)
            continue
        fits = len(problem.text) <= CHARACTERS_PER_TOKEN * limit
        prompt = renderer.render(problem) if fits else None
        if prompt is None or len(prompt.token_ids) > limit:
            dropped.drop(f"prompt over data.max_prompt_tokens ({limit})", problem.id)
            continue
        prompts.append(prompt)
    unplaced = sum(bool(prompt.problem.system) for prompt in prompts) if config.prompt.template != "chat" else 0
    data = TrainingData(prompts, dropped, unplaced)
    if not prompts:
        raise ValueError(f"no problem is left to train on: {data.describe()}")
    return data


def cursor_of(config: Config, prompts: Sequence[Prompt]) -> Cursor[Prompt] | Mixed[Prompt]:
    """The order in which a run takes its prompts.

    Raises `ValueError` if a source of `data.mix` has no prompts.
    """
    data = config.data
    if not data.mix:
        return Cursor(prompts, config.seed, data.shuffle, replay=data.replay)
    parts: list[list[Prompt]] = [[] for _ in data.mix]
    for prompt in prompts:
        parts[prompt.problem.part].append(prompt)
    if empty := [f"data.mix.{number}" for number, part in enumerate(parts) if not part]:
        raise ValueError(f"{', '.join(empty)}: no problem is left to train on")
    cursors = [
        Cursor(part, f"{config.seed}/{number}", data.shuffle, replay=data.replay) for number, part in enumerate(parts)
    ]
    return Mixed(cursors, [one.weight for one in data.mix])
