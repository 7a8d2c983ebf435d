"""`rrm report` on runs made by hand: what it says, what it draws, and texts that would rather act than be seen."""

import html.parser
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.errors import RrmError
from rrm_jax.evaluation import training_picture as pictures
from rrm_jax.evaluation.training_log import headline, last_values, read_training_log, settings_that_differ
from rrm_jax.evaluation.training_report import write_report

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{1}$ \u202egnp.exe \x00\x1b[2J ]]> \ud800 &amp;"


def train_row(step: int, **changes) -> dict:
    row = {
        "kind": "train", "step": step, "loss": 0.1 / step, "reward_mean": step / 100, "reward_std": 0.9,
        "accuracy": 0.5 + step / 500, "zero_variance_groups": 0.4, "invalid_rate": 0.01, "truncation_rate": 0.02,
        "response_length": 300.0 + step, "response_length_max": 900.0, "kl": 1e-4 * step, "entropy": 0.6,
        "clip_low": 0.001, "clip_high": 0.002, "mismatch": 1e-3, "mismatch_kl": 1e-6, "grad_norm": 0.3,
        "tokens_per_second": 4e3, "seconds_sample": 6.0, "seconds_score": 1.0, "seconds_update": 3.0,
    }  # fmt: skip
    return row | changes


def eval_row(step: int, accuracy: float) -> dict:
    row = {"kind": "eval", "step": step, "accuracy": accuracy, "order_consistency": accuracy - 0.1}
    return row | {"invalid_rate": 0.0, "response_length": 310.0, "seconds_eval": 20.0}


def make_run(
    directory: Path, steps: int = 40, of: int = 40, rate: float = 1e-6, trace: str = "<think>\n1 + 1", **changes
) -> Path:
    directory.mkdir(parents=True)
    settings = {
        "method": "grpo",
        "output": str(directory),
        "steps": of,
        "seed": 0,
        "optimizer": {"learning_rate": rate},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    made = {"versions": {"jax": "0.12"}, "devices": ["cpu:cpu"] * 8, "git_revision": "abc", "resumed": [{}]}
    (directory / "run.json").write_text(json.dumps(made), encoding="utf-8")
    rows = [eval_row(0, 0.5)]
    for step in range(1, steps + 1):
        rows.append(train_row(step, **changes))
        if step % 10 == 0:
            rows.append(eval_row(step, 0.9 - abs(step - 20) / 100))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    traces = [
        {"step": step, "id": f"{trace} {step}", "verdict": None, "reward": -1.0, "finished": True, "completion": trace}
        for step in range(1, steps + 1)
    ]
    (directory / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in traces), encoding="utf-8")
    return directory


def parse(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>\n"))


def test_the_headline_says_what_was_reached(tmp_path):
    lines = headline(read_training_log(make_run(tmp_path / "run")))
    assert lines == [
        "step 40 of 40 (finished)",
        "held out, both orders: accuracy 50.0 % → 70.0 %, the most at step 20 (90.0 %); order consistency 40.0 % → "
        "60.0 %; invalid 0.0 % → 0.0 %",
        "in training: accuracy 50.2 % → 58.0 %; reward 0.01 → 0.4; loss 0.1 → 0.0025",
        "8 min of steps and evaluations: sample 48 %, score 8 %, update 24 %, eval 20 %",  # 240, 40, 120, 100 s of 500
        "on 8 × cpu:cpu, jax 0.12, revision abc, seed 0; resumed 1 times",
    ]


def test_a_page_is_one_file_with_curves_values_traces_and_settings(tmp_path):
    run = make_run(tmp_path / "run")
    write_report([run], run / "report.html")
    tree = parse(run / "report.html")
    (image,) = [element for element in tree.iter() if element.tag == "img"]
    assert image.get("src", "").startswith("data:image/png;base64,iVBOR")
    cells = [[cell.text for cell in row] for row in tree.iter("tr")]
    assert ["kl", "0.0001", "0.004"] in cells
    assert ["order_consistency", "0.4", "0.6"] in cells
    summaries = ["".join(element.itertext()) for element in tree.iter("summary")]
    assert len(summaries) == 2 + 4 + 1
    assert summaries[0] == "step 1 · verdict None · reward -1 · finished True"
    assert [line.split(" ·")[0] for line in summaries[2:6]] == [f"step {step}" for step in (37, 38, 39, 40)]
    assert "learning_rate: 1.0e-06" in "".join(tree.itertext())


def test_hostile_texts_stay_text(tmp_path):
    name = "<b>$x$ _"
    run = make_run(tmp_path / name, trace=HOSTILE)
    settings = yaml.safe_load((run / "config.yaml").read_text()) | {"note": HOSTILE.replace("\ud800", "")}
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(train_row(41, **{HOSTILE: 1.0, "seconds_<i>$": 1.0, "reward_mean": float("nan")})) + "\n")
    plain = make_run(tmp_path / "plain")
    for runs in ([run], [run, plain]):
        write_report(runs, tmp_path / "page.html")
        write_report(runs, tmp_path / "page.png")
        tree = parse(tmp_path / "page.html")
        tags = {element.tag for element in tree.iter()}
        assert tags <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "ul", "li", "img",
                        "details", "summary", "pre", "table", "tr", "th", "td"}  # fmt: skip
        raw = (tmp_path / "page.html").read_bytes().decode("utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e]", raw)
        assert "<script>alert(1)</script>" in "".join(tree.itertext())

        class Loads(html.parser.HTMLParser):
            found: list = []  # noqa: RUF012

            def handle_starttag(self, tag, attrs):
                self.found += [(tag, k, v[:5]) for k, v in attrs if k.startswith("on") or k in ("href", "src")]

        Loads.found.clear()
        Loads().feed(raw)
        assert Loads.found == [("img", "src", "data:")]


def test_a_run_that_goes_on_or_was_killed(tmp_path):
    run = make_run(tmp_path / "run", steps=3, of=40)
    for name in ("metrics.jsonl", "traces.jsonl"):
        with open(run / name, "ab") as file:
            file.write(b'{"kind": "train", "step": 4, "lo')
    before = (run / "metrics.jsonl").read_bytes()
    log = read_training_log(run)
    assert headline(log)[0] == "step 3 of 40 (going on, or ended before)"
    write_report([run], run / "report.html")
    assert (run / "metrics.jsonl").read_bytes() == before  # somebody else's, perhaps being written
    (run / "traces.jsonl").unlink()
    (run / "run.json").unlink()
    write_report([run], run / "report.html")
    assert "None were written" in "".join(parse(run / "report.html").itertext())


def test_one_step_and_a_supervised_run_are_drawn(tmp_path):
    run = make_run(tmp_path / "run", steps=1)
    rows = [{"kind": "train", "step": 1, "loss": 2.0, "grad_norm": 0.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_report([run], tmp_path / "page.png")
    assert pixels(tmp_path / "page.png").shape[1] == 1650


def pixels(path: Path) -> np.ndarray:
    import matplotlib.image

    return matplotlib.image.imread(path)[..., :3]


def amount(picture: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return int((np.abs(picture - wanted).max(-1) < 0.02).sum())


def test_several_runs_are_laid_over_each_other_and_compared(tmp_path):
    runs = [
        make_run(tmp_path / "one"),
        make_run(tmp_path / "_two", steps=150, of=200, rate=3e-6, kl=0.5, loss=1.0, entropy=0.1, grad_norm=9.0),
    ]
    logs = [read_training_log(run) for run in runs]
    assert settings_that_differ(logs) == [
        ["setting", "one", "_two"],
        ["optimizer.learning_rate", "1e-06", "3e-06"],
        ["steps", "40", "200"],
    ]
    assert last_values(logs, "train")[2] == ["reward_mean", "0.01", "0.4", "0.01", "1.5"]
    write_report(runs, tmp_path / "both.png")
    write_report(runs[:1], tmp_path / "one.png")
    both, one = pixels(tmp_path / "both.png"), pixels(tmp_path / "one.png")
    blue, orange, green = pictures.COLOURS[:3]
    assert min(amount(both, blue), amount(both, orange)) > 200
    assert amount(both, green) == 0  # a colour each, whatever the metric
    assert amount(one, green) > 500
    write_report(runs, tmp_path / "both.html")
    assert "_two, last" in "".join(parse(tmp_path / "both.html").itertext())


def test_the_running_mean_is_a_mean_over_what_there_is():
    values = np.arange(100.0)
    found = pictures.running_mean(values)
    np.testing.assert_allclose(found[2:-2], values[2:-2])  # a line stays a line
    assert found[0] == (0 + 1 + 2) / 3
    assert found[-1] == (97 + 98 + 99) / 3


def test_what_cannot_be_reported_is_said(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(RrmError, match="is not a training run: it has no config"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(RrmError, match=r"\.html .* or \.png"):
        write_report([run], tmp_path / "page.pdf")
    with pytest.raises(RrmError, match="cannot write"):
        write_report([run], tmp_path / "nowhere" / "page.html")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b"[]\n")
    with pytest.raises(RrmError, match=r"metrics\.jsonl:46 is not a row with a step"):
        write_report([run], tmp_path / "page.html")
    (run / "metrics.jsonl").write_bytes(b'{"torn')
    with pytest.raises(RrmError, match="has no metrics yet"):
        write_report([run], tmp_path / "page.html")


def test_the_verb(tmp_path):
    runs = [str(make_run(tmp_path / name)) for name in ("one", "two")]
    done = CliRunner().invoke(_app, ["report", runs[0]])
    assert done.stdout.strip() == f"{runs[0]}/report.html"
    assert Path(runs[0], "report.html").stat().st_size > 50_000
    assert isinstance(CliRunner().invoke(_app, ["report", *runs]).exception, RrmError)
    done = CliRunner().invoke(_app, ["report", *runs, "--out", str(tmp_path / "c.png")])
    assert done.exit_code == 0
    assert "rrm report runs/grpo" in CliRunner().invoke(_app, ["report", "--help"]).stdout
