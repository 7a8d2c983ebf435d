import json

import pytest
from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.errors import RrmError
from rrm_jax.models.presets import PAPER_MODELS
from rrm_jax.parallel.accelerators import accelerator
from rrm_jax.parallel.serving_cost import serving_cost
from rrm_jax.reproduce.config import load
from rrm_jax.reproduce.dry_run import dry_run, remarks, rows
from tests.evaluation.benchmark_rows import rm_bench_rows

STUDY = (
    "output: studies/reasoning\nbaseline: direct\npairs: data/pairs.jsonl\njudges:\n"
    "  thinking: {model: a, thinking: true}\n  direct: {model: b, thinking: false}\n"
)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Two seeds of one study, whose files are not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reasoning.yaml").write_text(STUDY)
    (tmp_path / "all.yaml").write_text(
        "output: out\ntitle: t\nabout: a\nseeds: [0, 1]\nstudies: {reasoning: reasoning.yaml}\n"
        "assumed: {pairs: 100, model: 7b, prompt_tokens: 500, thinking_tokens: 800, verdict_tokens: 4, "
        "training: {RRM-7B: rrm_7b.yaml}}\n"
    )
    return "all.yaml"


def test_votes_tokens_and_hours(path):
    """100 pairs × 2 orders × 2 seeds = 400 votes of each judge, on as many prompts."""
    plan = dry_run(load(path, []), accelerator("h100"))
    thinking, direct = plan.lines
    assert (plan.votes, plan.new) == (800, {"reasoning": 800})
    assert (thinking.prompts, thinking.votes, thinking.new_tokens) == (400, 400, 400 * 800)
    assert direct.new_tokens == 400 * 4
    alone = serving_cost(
        PAPER_MODELS["7b"], accelerator("h100"), prompts=400, votes=400, prompt_tokens=500, new_tokens=800
    )
    assert thinking.cost == alone
    assert plan.hours == pytest.approx((alone.device_seconds + direct.cost.device_seconds) / 3600)
    assert plan.training["RRM-7B"] > 100 * plan.hours
    assert plan.missing == ("data/pairs.jsonl",)
    assert rows(plan)[-1][:4] == ["all", "", "", "800"]
    assert any("100 pairs" in line and "data/pairs.jsonl" in line for line in remarks(plan, load(path, []).assumed))


def test_a_faster_device_takes_less(path):
    hours = [dry_run(load(path, []), accelerator(name)).hours for name in ("h200", "h100", "a100-80")]
    assert hours == sorted(hours)


def test_a_budget_cuts_what_is_written(path):
    text = STUDY.replace("baseline: direct\n", "budgets: [100, 1000]\nunbounded: false\n").replace("reasoning", "tb")
    with open("tb.yaml", "w") as file:
        file.write(text)
    plan = dry_run(load(path, ["studies={thinking-budget: tb.yaml}"]), accelerator("h100"))
    tokens = {(line.judge, line.budget): line.new_tokens / line.votes for line in plan.lines}
    assert (tokens["a", 100], tokens["a", 1000]) == (104, 800)


def test_the_verb(path, tmp_path):
    done = CliRunner().invoke(_app, ["reproduce", "--scale", path, "--dry-run", "--accelerator", "v5p"])
    assert done.exit_code == 0
    assert "device-hours" in done.stdout
    assert "not a measurement" in done.stdout.replace("\n", " ")
    assert not (tmp_path / "out").exists()
    alone = CliRunner().invoke(_app, ["reproduce", "--scale", path, "--dry-run", "--only", "nothing"])
    assert "--only nothing" in str(alone.exception)
    wrong = CliRunner().invoke(_app, ["reproduce", "--scale", path, "--dry-run", "--accelerator", "v7"])
    assert isinstance(wrong.exception, RrmError)


def test_what_is_not_there_is_told_and_the_exit_code_is_1(path):
    done = CliRunner().invoke(_app, ["reproduce", "--scale", path])
    assert done.exit_code == 1
    with open("out/report.md") as file:
        assert "reasoning, seed 1: there is no file data/pairs.jsonl" in file.read()


BENCHMARKS = """
output: studies/benchmarks
judges: {a: {model: a}}
benchmarks:
  rm-bench: {data: rows/total_dataset.json}
  ppe-math: {data: data/ppe}
  mine: {benchmark: pairs, data: data/mine.jsonl}
"""


def test_benchmarks_are_counted_by_their_games_whether_they_are_there_or_not(path, tmp_path):
    """RM-Bench has 9 games a prompt, of PPE 5 pairs a prompt are published, of 512 prompts; pairs are assumed."""
    (tmp_path / "b.yaml").write_text(BENCHMARKS)
    config = load(path, ["studies={benchmarks: b.yaml}", "seeds=[0]", "assumed.pairs=6"], only=["benchmarks"])
    plan = dry_run(config, accelerator("h100"))
    assert plan.new == {"benchmarks": 6 * 9 + 512 * 5 + 6}
    assert plan.missing == ("data/mine.jsonl", "data/ppe", "rows/total_dataset.json")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "total_dataset.json").write_text(json.dumps(rm_bench_rows()))
    assert len(rm_bench_rows()) == 6
    there = dry_run(config, accelerator("h100"))
    assert there.new == plan.new
    assert there.missing == ("data/mine.jsonl", "data/ppe")


def test_votes_of_runs_that_a_study_only_reads_are_not_its_own():
    """The paper's scale: `train: false`."""
    config = load("rrm-7b", [], only=["posttrain-rl"])
    plan = dry_run(config, accelerator("h100"))
    assert (plan.votes, plan.new, plan.lines) == (0, {"posttrain-rl": 0}, ())
    assert any("the runs tournament, verifier, coin of posttrain-rl" in line for line in remarks(plan, config.assumed))
