"""What docs/operations.md says is so: its table is what the formula gives, and the messages that it explains are those of the code."""

import ast
import importlib.util
import re
from pathlib import Path

import tomoray

ROOT = Path(tomoray.__file__).parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_sizing_table_is_what_its_formula_gives() -> None:
    """And the formula is right: an hour's worth of tomograms takes an hour. Planted: a price per machine instead of per hour."""
    spec = importlib.util.spec_from_file_location("sizing", ROOT / "tests" / "benchmarks" / "sizing.py")
    assert spec is not None
    assert spec.loader is not None
    sizing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sizing)
    assert sizing.table([500, 5000, 50000], sizing.MACHINES, 0.9) in TEXT
    assert sizing.table([7200], ["one, or two, 1, 3.5"], 0.5).splitlines()[-1] == "| one, or two | 1 | 3.50 | 4 h, $14.00 |"


def test_messages_that_are_explained_are_real() -> None:
    """Planted: a message that was reworded since."""
    nodes = [node for path in Path(tomoray.__file__).parent.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    said = "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    section = TEXT.partition("## When something fails")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    quoted = [quote for cell in first_cells for quote in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 15
    assert [quote for quote in quoted if quote not in said] == []


def test_places_that_are_named_are_there() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"\b((?:tests|k8s)/[\w./-]+\w)", TEXT):
        assert (ROOT / path).exists(), path
