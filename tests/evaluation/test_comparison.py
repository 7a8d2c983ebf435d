"""`rrm compare`: evaluations side by side, in every form."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.comparison import Line, joined, read_line


def score(name: str, value: float | None, parts=(), low: float | None = None) -> dict:
    high = None if low is None else 2 * value - low
    return {"name": name, "value": value, "low": low, "high": high, "items": 10, "parts": list(parts)}


def write(path: Path, benchmark: str, judges: dict, published=()) -> Path:
    facts = {"benchmark": benchmark, "scores": judges, "published": list(published)}
    path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
    return path


@pytest.fixture
def outs(tmp_path: Path) -> dict[str, Path]:
    known = {"who": "Others", "where": "paper", "scores": {"Overall": 82.2, "Unknown here": 1.0}}
    parts = [score("easy_1", 0.9), score("hard", 0.6)]
    return {
        "a": write(tmp_path / "a", "bench", {"j": [score("Overall", 0.75, parts, low=0.7)]}, [known]),
        "b": write(tmp_path / "b", "bench", {"j": [score("Overall", 0.8, [score("hard", None)])]}, [known]),
        "c": write(tmp_path / "c", "other", {"x": [score("Accuracy", 0.5)], "y": [score("Accuracy", 0.25)]}),
        "d": write(tmp_path / "d", "other", {"x": [score("Accuracy", 0.125)]}),
    }


def compare(*words: object) -> str:
    result = CliRunner().invoke(_app, ["compare", *map(str, words)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_a_line_a_model_and_the_best_is_bold(outs):
    text = compare(f"A|={outs['a']}", f"B={outs['b']}", f"A|={outs['d']}", "--format", "markdown", "--intervals")
    assert text.splitlines() == [
        "| % | bench: Overall | other: Accuracy |",
        "|---|---:|---:|",
        "| A\\| | 75.0 (70.0 – 80.0) | 12.5 |",
        "| B | **80.0** | – |",
        "| Others (published: paper) | 82.2 | – |",
    ]


def test_latex_escapes_and_compares_ours_alone(outs):
    text = compare(f"A_%={outs['a']}", f"B={outs['b']}", "--format", "latex", "--depth", "2")
    assert text.splitlines()[1:] == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"\% & Overall & easy\_1 & hard \\",
        r"\midrule",
        r"A\_\% & 75.0 & 90.0 & 60.0 \\",
        r"B & \textbf{80.0} & -- & -- \\",
        r"\midrule",
        r"Others (published: paper) & 82.2 & -- & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_csv_is_unrounded(outs, tmp_path):
    compare(outs["a"], outs["c"], "--format", "csv", "--out", tmp_path / "all.csv")
    with open(tmp_path / "all.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["published"], row["score"], row["value"], row["low"]) for row in rows] == [
        ("a j", "", "Overall", "0.75", "0.7"),
        ("c x", "", "Accuracy", "0.5", ""),
        ("c y", "", "Accuracy", "0.25", ""),
        ("Others", "paper", "Overall", "0.822", ""),
    ]


def test_the_terminal_obeys_no_name(outs):
    text = compare(f"\x1b[31mred={outs['c']}", "--no-published")
    assert "\x1b" not in text
    assert "50.0" in text


def test_parts_of_the_same_name_stay_apart(tmp_path):
    scores = [score("One", 0.1, [score("hard", 0.2)]), score("Two", 0.3, [score("hard", 0.4)])]
    (line,), _ = read_line(str(write(tmp_path / "e", "bench", {"j": scores})), 2)
    assert {" / ".join(path): cell.value for (_, path), cell in line.cells.items()} == {
        "One": 0.1, "One / hard": 0.2, "Two": 0.3, "Two / hard": 0.4,
    }  # fmt: skip
    # In another evaluation of the benchmark, another score is the first to have a part of that name.
    write(tmp_path / "f", "bench", {"j": scores[1:]}, [{"who": "O", "where": "w", "scores": {"One": 50, "hard": 9}}])
    text = compare(f"E={tmp_path / 'e'}", f"F={tmp_path / 'f'}", "--depth", "2", "--format", "markdown")
    assert text.splitlines() == [
        "| % | One | One / hard | Two | Two / hard |",
        "|---|---:|---:|---:|---:|",
        "| E | 10.0 | 20.0 | **30.0** | **40.0** |",
        "| F | – | – | **30.0** | **40.0** |",
        "| O (published: w) | – | – | – | 9.0 |",
    ]


def test_what_cannot_be_compared(outs, tmp_path):
    with pytest.raises(RrmError, match="'Overall' of bench twice; give the evaluations names"):
        compare(f"A={outs['a']}", f"A={outs['b']}")
    with pytest.raises(RrmError, match=r"cannot read .*nothing\.json"):
        compare(tmp_path / "nothing")
    (tmp_path / "wrong.json").write_text('{"benchmark": 1}', encoding="utf-8")
    with pytest.raises(RrmError, match="not what rrm eval --out writes"):
        compare(tmp_path / "wrong")
    assert joined([Line("a"), Line("a")]) == [Line("a")]


def test_a_path_may_hold_an_equals_sign(tmp_path):
    (tmp_path / "lr=1").mkdir()
    out = write(tmp_path / "lr=1" / "e", "bench", {"j": [score("Overall", 0.75)]})
    assert [line.name for line in read_line(str(out), 1)[0]] == ["e j"]
    assert [line.name for line in read_line(f"Mine={out}", 1)[0]] == ["Mine"]
