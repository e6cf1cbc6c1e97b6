"""How a run is assembled: overlap warnings and the sizes of the pieces that workers sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.suites import SUITES
from rl_engine.config.file import ConfigError
from rl_engine.run.output import check_output
from rl_engine.run.records import Records
from rl_engine.sampling.data import TrainingData
from rl_engine.train.assemble import plan_lines
from rl_engine.train.resolve import resolve_eval_pieces, resolve_pieces
from rl_engine.train.suites import overlap_notes
from tests.helpers.builders import prompt


def test_a_run_is_warned_of_overlap_but_not_of_generated_sums() -> None:
    prompts = [prompt("a 1"), prompt("b 2")]
    data = TrainingData(prompts)
    (note,) = overlap_notes(data, [(SUITES["gsm8k"], prompts[:1]), (SUITES["held_out"], prompts)])
    assert note.startswith("warning: 1 of 2 training problems overlap gsm8k (1 word for word")


def test_pieces_of_a_whole_cluster_follow_from_the_configuration(make_config: Any) -> None:
    """A resumed run keeps them, even when it is resumed with a fixed number of workers."""
    pool = ("rollout.placement=ray", "rollout.address=auto", "log.tensorboard=false")
    whole = (*pool, "rollout.workers=max")
    for problems, piece in ((32, 1), (64, 1), (512, 8), (4096, 16)):
        assert make_config(*whole, f"train.problems_per_step={problems}").training_piece == piece
    begun = resolve_pieces(make_config(*whole, "train.problems_per_step=512"), resume=False)
    assert begun.rollout.workers == "max"
    assert plan_lines(begun)["workers"] == "as many as the cluster has room for, 8 prompts at a time"
    Records(Path(begun.output_dir), begun).open(-1)
    resumed = resolve_pieces(make_config(*pool, "rollout.workers=4", "train.problems_per_step=512"), resume=True)
    assert resumed.rollout.prompts_per_piece == 8
    check_output(resumed, resume=True)


def test_a_resumed_run_keeps_the_pieces_it_began_with(make_config: Any) -> None:
    """The number that `auto` resolved to is recorded."""
    pool = ("rollout.placement=ray", "log.tensorboard=false", "train.problems_per_step=32")
    begun = resolve_pieces(make_config(*pool, "rollout.workers=16"), resume=False)
    begun = resolve_eval_pieces(begun, 100, resume=False)
    assert (begun.rollout.prompts_per_piece, begun.eval.prompts_per_piece) == (2, 6)
    Records(Path(begun.output_dir), begun).open(-1)
    later = make_config(*pool, "rollout.workers=4")
    resumed = resolve_eval_pieces(resolve_pieces(later, resume=True), 300, resume=True)
    assert (resumed.rollout.prompts_per_piece, resumed.eval.prompts_per_piece) == (2, 6)
    check_output(resumed, resume=True)
    assert (resumed.rollout.workers, resumed.eval) == (4, begun.eval)
    anew = resolve_pieces(later, resume=False)
    assert anew.rollout.prompts_per_piece == 8
    (Path(begun.output_dir) / "checkpoints" / "step000001").mkdir(parents=True)
    given = resolve_pieces(make_config(*pool, "rollout.prompts_per_piece=4"), resume=True)
    assert any("rollout.prompts_per_piece" in note for note in check_output(given, resume=True))


def test_in_process_nothing_is_cut(make_config: Any) -> None:
    config = make_config()
    assert resolve_eval_pieces(resolve_pieces(config, resume=False), 100, resume=False) == config
    with pytest.raises(ConfigError, match=r"eval\.prompts_per_piece is 4, and has no effect"):
        make_config("eval.prompts_per_piece=4")


def test_the_first_lines_name_all_that_is_learned_with(make_config: Any) -> None:
    """Clipping and the KL term were left out: two cells of a sweep that differ in nothing else looked the same."""
    config = make_config("loss.kl_coef=0.01", "loss.entropy_coef=-0.5", "optim.clip_norm=0.2", "optim.lr=1e-3")
    assert plan_lines(config)["learning"] == (
        "importance_sampling over group_mean, KL to the base model × 0.01 (k3), entropy × -0.5, 1 update per step, "
        "Adam 0.9/0.95, constant rate 0.001, gradients clipped at 0.2"
    )
