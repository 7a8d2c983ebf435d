"""The scripts of `examples/`, run from beginning to end at a size that takes seconds."""

import runpy
import sys
from pathlib import Path

import pytest

from rrm_jax.quickstart.run import Sizes, prepare

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = [pytest.mark.usefixtures("quick_compiles"), pytest.mark.thorough]


def run(name: str, *words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What `train.py` makes, here of a few steps."""
    directory = tmp_path_factory.mktemp("example")
    prepare(directory, 0, Sizes(demonstrations=1000, pairs=100, eval=20, rank=1))
    run("train.py", "--out", directory, "--warm-up-steps", 2, "--steps", 1)
    return directory


def test_train(trained, capsys):
    run("train.py", "--out", trained, "--warm-up-steps", 2, "--steps", 1)  # goes on where it was: nothing is left
    said = capsys.readouterr().out
    assert f"{trained / 'grpo'}: " in said
    assert "% of held-out pairs right" in said


def test_judge(trained, capsys):
    run("judge.py", "--model", trained / "grpo")
    said = capsys.readouterr().out
    assert said.count("it wrote: ") == 3
    assert "the better answer by 3 votes: " in said


def test_best_of_n(trained, tmp_path, capsys):
    words = "--candidates", 0, 1, 2, "--out", tmp_path / "it.png"
    run("best_of_n.py", "--model", trained / "grpo", *words)
    assert "the best of 3 by 3 comparisons: " in capsys.readouterr().out
    assert (tmp_path / "it.png").stat().st_size > 10_000


def test_study(trained, tmp_path, capsys):
    words = "--pairs", trained / "data/eval.jsonl", "--most-votes", 4, "--out", tmp_path / "it.png"
    run("study.py", "--model", trained / "warm_start", *words)
    said = capsys.readouterr().out
    assert [line.split(":")[0].strip() for line in said.splitlines()[:3]] == ["1 votes", "2 votes", "4 votes"]
    assert (tmp_path / "it.png").stat().st_size > 10_000
