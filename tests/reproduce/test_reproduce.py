"""All studies with judges that answer without a model."""

import json
from pathlib import Path

import pytest

from rrm_jax.errors import RrmError
from rrm_jax.reproduce import run
from rrm_jax.reproduce.config import Assumed, load, moved, studies_of
from rrm_jax.reproduce.counting import count
from rrm_jax.reproduce.report import claims, write
from rrm_jax.reproduce.run import reproduce
from tests.judging.fake_generator import Killed, coin, prefers
from tests.studies.conftest import FakeJudges, good_pairs, letters, write_rows  # noqa: F401  (a fixture)

STUDIES = {
    "reasoning": "judges: {right: {model: right}, coin: {model: coin}}\nbaseline: coin\npairs: data/pairs.jsonl\n",
    "test-time-compute": (
        "judges: {coin: {model: coin}}\npairs: data/pairs.jsonl\ncandidates: data/c.jsonl\nvotes: [1, 3]\n"
        "strategies: [knockout, 'random:opponents=2', round-robin]\n"
    ),
    "intransitivity": "games: {coin: {path: studies/test-time-compute/games.jsonl, strategy: round-robin}}\n",
    "dynamics": "runs: {gone: runs/gone}\n",
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two seeds of four studies, of which the last has nothing to read."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_rows(Path("data/pairs.jsonl"), good_pairs(6))
    write_rows(
        Path("data/c.jsonl"),
        [
            {"id": str(at), "query": f"c{at}", "responses": ["bad x", "good", "bad y", "bad z"],
             "correct": [False, True, False, False]}
            for at in range(3)
        ],
    )  # fmt: skip
    for name, text in STUDIES.items():
        Path(f"{name}.yaml").write_text(f"output: studies/{name}\nresamples: 100\n{text}")
    studies = "".join(f"  {name}: {name}.yaml\n" for name in STUDIES)
    Path("all.yaml").write_text(
        f"output: out\ntitle: A <b> title\nabout: Of nothing.\nseeds: [3, 5]\nstudies:\n{studies}"
    )
    return load("all.yaml", [])


@pytest.fixture
def judges(letters):  # noqa: F811
    return FakeJudges(letters, {"right": prefers("good"), "coin": coin})


def test_seeds_are_pooled_and_told_in_one_report(config, judges):
    told = []
    done = reproduce(config, judges.open, told.append)
    paths = write(config, done)
    assert [str(path) for path in paths] == ["out/report.html", "out/report.md", "out/seconds.json"]
    assert [section.seeds for section in done.sections] == [(3, 5), (3, 5), (3, 5), ()]
    assert not done.complete
    each = [json.loads(Path(f"out/seed-{seed}/reasoning/data.json").read_text())["found"] for seed in (3, 5)]
    pooled = json.loads(Path("out/reasoning/data.json").read_text())
    means = [found["scores"][1]["accuracy"]["estimate"] for found in each]
    assert pooled["found"]["scores"][1]["accuracy"]["estimate"] == pytest.approx(sum(means) / 2)
    assert pooled["found"]["scores"][1]["counts"]["votes"] == 2 * 12
    assert pooled["seeds"] == [3, 5]
    assert ["reasoning", "right judges better than coin"] in [row[:2] for row in claims(done)]
    for path in paths[:2]:
        text = path.read_text()
        assert "Does thinking help?" in text
        assert "18 labelled pairs" not in text
        assert "12 labelled pairs" in text
        assert "dynamics, seed 5: there is no file runs/gone/metrics.jsonl" in text
        assert "Seeds 3, 5" in text
    html = paths[0].read_text()
    assert html.count("<img ") == 3
    assert "A &lt;b&gt; title" in html
    assert "(test-time-compute/figure.png)" in paths[1].read_text()
    assert Path("out/test-time-compute/figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.thorough
def test_killed_it_goes_on_and_asks_for_nothing_twice(config, judges):
    judges.dies_after = 15  # in the first seed's test-time compute
    with pytest.raises(Killed):
        reproduce(config, judges.open)
    judges.dies_after = None
    write(config, reproduce(config, judges.open))
    report, asked = Path("out/report.md").read_bytes(), judges.asked
    write(config, reproduce(config, judges.open))
    assert judges.asked == asked
    assert Path("out/report.md").read_bytes() == report


def test_seeds_and_studies_can_be_added(config, judges):
    reproduce(load("all.yaml", ["seeds=[5]"]), judges.open)
    store = Path("out/seed-5/test-time-compute/votes.jsonl")
    before, asked = store.read_bytes(), judges.asked
    done = reproduce(config, judges.open)
    assert done.sections[0].seeds == (3, 5)
    assert judges.asked > asked
    assert store.read_bytes() == before


def test_one_study_alone(config, judges):
    alone = load("all.yaml", ["seeds=[5]"], ["reasoning"])
    done = reproduce(alone, judges.open)
    assert (list(alone.studies), done.complete) == (["reasoning"], True)
    assert judges.asked == 2 * 12
    assert not Path("out/seed-5/test-time-compute").exists()
    with pytest.raises(RrmError, match=r"--only reasonin: all.yaml has reasoning, .*; did you mean reasoning\?"):
        load("all.yaml", [], ["reasonin"])


def test_votes_are_counted_before_they_are_drawn(config, judges):
    """Exact here, where the round robin asks for all that a knockout may."""
    studies = studies_of(config, 3)
    asked, new = count(studies, Assumed())
    reproduce(load("all.yaml", ["seeds=[3]"]), judges.open)
    assert sum(one.votes for one in asked) == sum(new.values()) == judges.asked
    assert (new["reasoning"], new["intransitivity"], new["dynamics"]) == (2 * 2 * 6, 0, 0)
    (right,) = [one for one in asked if one.judge.model == "right"]
    assert (right.prompts, right.votes) == (12, 12)


def test_rows_that_are_not_there_are_assumed(config):
    config = load("all.yaml", ["paths.data=nowhere"])
    (right, _), new = count(studies_of(config, 3), Assumed(pairs=10, queries=4, candidates=4))
    assert (right.prompts, new["reasoning"]) == (20, 40)
    assert new["test-time-compute"] >= 3 * 10 + 4 * 6


@pytest.mark.thorough
def test_a_shared_store_counts_once():
    studies = studies_of(load("tiny", []), 0)
    few = Assumed(pairs=20, queries=5)
    shared = count(studies, few)[1]
    apart = count({**studies, "cost": studies["cost"].model_copy(update={"verdicts": "elsewhere"})}, few)[1]
    assert shared["cost"] < apart["cost"]
    assert shared["thinking-budget"] == 2 * 20 * 8


def test_paths_are_moved_whole():
    moves = {"runs/a": "/x", "runs/a/b": "/y"}
    config = {"output": "runs/a", "judges": {"j": {"model": "runs/a/b/c"}}, "files": ["runs/ab", "other", 3, None]}
    assert moved(config, moves) == {
        "output": "/x",
        "judges": {"j": {"model": "/y/c"}},
        "files": ["runs/ab", "other", 3, None],
    }


@pytest.mark.parametrize("scale", ["tiny", "rrm-7b", "rrm-32b"])
def test_packaged_scales(scale):
    config = load(scale, ["output=/o", "paths.checkpoints=/weights"])
    studies = studies_of(config, 7)
    assert all(study.output == f"/o/seed-7/{name}" and study.seed == 7 for name, study in studies.items())
    text = json.dumps([study.model_dump() for study in studies.values()])
    assert "runs/studies" not in text
    assert "runs/quickstart" not in text
    assert "checkpoints/" not in text.replace("/weights/", "")


def test_what_cannot_be(config):
    with pytest.raises(RrmError, match="different numbers"):
        load("all.yaml", ["seeds=[1, 1]"])
    with pytest.raises(RrmError, match="no study 'reason'"):
        load("all.yaml", ["studies.reason=reasoning.yaml"])
    Path("intransitivity.yaml").write_text(f"output: studies/reasoning\n{STUDIES['intransitivity']}")
    with pytest.raises(RrmError, match="two studies write to studies/reasoning"):
        studies_of(config, 0)


def test_judges_are_trained_before_they_are_studied(config, judges, monkeypatch):
    """Training itself is quickstart's: here only what is asked of it, and where."""
    asked = []
    monkeypatch.setattr(run, "prepare", lambda directory, seed, sizes: asked.append((str(directory), seed, sizes.rank)))
    monkeypatch.setattr(run, "train_run", lambda directory, name, seed, report: asked.append((name, seed)))
    done = reproduce(load("all.yaml", ["train=quickstart", "seeds=[3]"]), judges.open)
    assert asked[0] == ("out/seed-3/quickstart", 3, run.SIZES.rank)
    assert asked[1:] == [(name, 3) for name in run.TRAINED]
    assert next(iter(done.seconds)) == "seed 3: train warm_start"
    assert len(done.seconds) == 5 + 4
