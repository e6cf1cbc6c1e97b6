"""docs/cost.md: its hours, prices and GiB are what the commands beside them print, and README.md repeats them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl_engine.plan.__main__ import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cost.md").read_text()
README = (ROOT / "README.md").read_text()
PRICES = {"RTX 4090": 0.5, "H100": 2.5, "H200": 3.5}
"""Dollars per hour that the page assumes."""
COMMAND = "python -m rl_engine.plan "
MEASURED = ("--mfu", "0.2")
"""The learner's utilization on the one card that was measured; the default is an assumption."""


def rows_of(page: str) -> list[list[str]]:
    """The cells of every table row that contains one of these commands."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return [cells for cells in rows if any(COMMAND in cell for cell in cells)]


RECIPES = [cells for cells in rows_of(PAGE) if len(cells) == 6]
LENGTHS = [cells for cells in rows_of(PAGE) if len(cells) == 2]


def planned(command: str, *more: str) -> tuple[float, float]:
    """(hours of the run, the most GiB that one card needs in any phase)."""
    done = CliRunner().invoke(app, [*command.strip("`").removeprefix(COMMAND).split(), *more])
    assert done.exit_code == 0, done.output
    hours = re.search(r"^the run, hours +([\d.,]+)", done.output, re.MULTILINE)
    needed = re.findall(r"^needed in \w+ +([\d.]+) of", done.output, re.MULTILINE)
    assert hours is not None
    return float(hours[1].replace(",", "")), max(map(float, needed))


def span(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"


def shown(hours: float) -> str:
    return f"{hours:.1f}" if hours < 100 else f"{hours:.0f}"


@pytest.mark.parametrize("cells", RECIPES, ids=lambda cells: f"{cells[0]} {cells[1]}")
def test_a_recipe_costs_what_its_command_says(cells: list[str]) -> None:
    recipe, cards, hours, price, memory, command = cells
    count, _, card = cards.partition(" × ")
    wanted = f"--config {recipe.strip('`')} --devices {count}x{memory.partition(' of ')[2]} --card "
    assert command.strip("`").startswith(COMMAND + wanted)
    (fast, needed), (slow, _) = planned(command), planned(command, *MEASURED)
    assert hours == span(shown(fast), shown(slow))
    dollars = int(count) * PRICES[card]
    assert price == "$" + span(f"{fast * dollars:.0f}", f"{slow * dollars:.0f}")
    assert memory.partition(" of ")[0] == f"{needed:.1f}"


@pytest.mark.parametrize("cells", LENGTHS, ids=lambda cells: " ".join(cells[0].split()[4:7]))
def test_shorter_completions_cost_what_the_command_says(cells: list[str]) -> None:
    command, hours = cells
    assert hours == span(shown(planned(command)[0]), shown(planned(command, *MEASURED)[0]))


def test_the_page_holds_the_recipes_that_need_a_card() -> None:
    assert len(RECIPES) == 12
    assert len(LENGTHS) == 4
    for card, price in PRICES.items():
        assert f"${price:.2f} for an {card}" in PAGE


def test_readme_repeats_the_page() -> None:
    table = README.partition("## Which recipe, on which card")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if ".yaml` |" in line]
    assert len(rows) == 4
    of_page = {(cells[0], cells[1]): f"{cells[2]} h, {cells[3]}" for cells in RECIPES}
    for recipe, _, *cells in rows:
        for cards, cell in zip(("1 × RTX 4090", "1 × H100", "8 × H100"), cells, strict=True):
            said = of_page.get((recipe, cards))
            assert cell == said or (said is None and cell in ("", "does not fit"))


@pytest.mark.parametrize("recipe", ["gsm8k.yaml", "math.yaml", "deepmath.yaml"])
def test_what_readme_says_does_not_fit_does_not(recipe: str) -> None:
    done = CliRunner().invoke(app, ["--config", recipe, "--devices", "1x24"])
    assert re.search(r"^fits +no$", done.output, re.MULTILINE)
