"""`rrm eval` from the outside: with a fake model, a server that fails, and files of verdicts."""

import functools
import itertools
import json
import string
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli import loading
from rrm_jax.cli.main import _app
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.sampling.remote import RemoteGenerator
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from tests.judging.fake_generator import FakeGenerator, Killed, coin, prefers
from tests.sampling.stub_server import QUICK, stub_servers, vllm

ROWS = 24

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer of one token a character."""
    directory = tmp_path_factory.mktemp("model")
    vocabulary = write_word_tokenizer(directory, string.printable)
    write_hf_checkpoint(directory, tiny_config(vocab_size=vocabulary, max_positions=8192))
    return directory


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def judgebench(tmp_path: Path) -> Path:
    """A response of 24 pairs is good; of the first 6 neither is marked, so that no verdict on them is valid."""
    rows = [
        {
            "pair_id": f"p{at}", "source": ["mmlu-pro-law", "livecodebench"][at % 2], "question": f"question {at}",
            "response_A": f"good {at}" if at >= 6 and at % 3 else f"one {at}",
            "response_B": f"good {at}" if at >= 6 and not at % 3 else f"two {at}",
            "label": "A>B" if at % 3 else "B>A",
        }
        for at in range(ROWS)
    ]  # fmt: skip
    return write(tmp_path / "gpt.jsonl", rows)


def candidates(path: Path) -> Path:
    rows = [
        {
            "id": str(at), "query": f"q {at}",
            "responses": [f"{'good' if c == at % 4 else 'bad'} {c}" for c in range(4)],
            "correct": [c == at % 4 for c in range(4)],
        }
        for at in range(8)
    ]  # fmt: skip
    return write(path, rows)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path):
    """`run(answer, name, data, *options)` → (result, generator); without an answer there is no model."""

    def call(answer, name: str, *options: str | Path, dies_after: int | None = None, generator=None):
        generator = generator or FakeGenerator(Tokenizer.load(model), answer, 3, dies_after)
        monkeypatch.setattr(loading, "open_model", lambda *args: generator)
        arguments = ["eval", name, *map(str, options)]
        if answer is not None:
            arguments += ["--model", str(model), "--out", str(tmp_path / "out"), "--max-new-tokens", "64"]
        result = CliRunner().invoke(_app, arguments)
        if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit, Killed)):
            raise result.exception
        return result, generator

    return call


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def scores_of(out: Path) -> dict[str, float]:
    (tree,) = read(out.with_name(out.name + ".json"))["scores"].values()
    named = {}
    while tree:
        named |= {one["name"]: one["value"] for one in tree}
        tree = [part for one in tree for part in one["parts"]]
    return named


def test_judges_scores_and_reports(run, judgebench, tmp_path):
    result, generator = run(prefers("good"), "judgebench", "--data", judgebench)
    assert result.exit_code == 0, result.output
    assert len(generator.requests) == 2 * ROWS  # both orders are JudgeBench's convention
    # Invalid verdicts gain nothing there.
    assert scores_of(tmp_path / "out")["Overall"] == 18 / 24
    facts = read(tmp_path / "out.json")
    (overall,) = facts["scores"]["judge"]
    assert overall["items"] == 24
    assert overall["low"] < 18 / 24 < overall["high"]
    counts = overall["counts"]
    assert (counts["votes"], counts["invalid"], counts["no_winner"], counts["comparisons"]) == (48, 12, 6, 24)
    assert (counts["both_orders"], counts["consistent"]) == (24, 18)
    assert counts["tokens"] > 48
    assert facts["policy"]["invalid"] == "0"
    assert facts["published"][0]["scores"] == {"Overall": 75.7}
    assert "75.0 % of 24" in result.stdout
    assert "published (not measured here)" in result.stdout
    page = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert page.startswith("# judgebench\n\n- ")
    assert "| Overall | 75.0 |" in page
    rows = [json.loads(line) for line in (tmp_path / "out.judged.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["id"] for row in rows} == {f"p{at}" for at in range(ROWS)}
    provenance = read(tmp_path / "out.run.json")
    assert provenance["config"]["benchmark"] == "judgebench"
    assert provenance["inputs"]["gpt.jsonl"]["path"] == str(judgebench)


def test_scored_otherwise_nothing_is_judged_again(run, judgebench, tmp_path):
    run(prefers("good"), "judgebench", "--data", judgebench)
    result, generator = run(prefers("good"), "judgebench", "--data", judgebench, "--invalid", "0.5")
    assert result.exit_code == 0, result.output
    assert generator.requests == []
    assert "0 votes drawn now, 48 found in the store" in result.stdout
    assert scores_of(tmp_path / "out")["Overall"] == (18 + 3) / 24
    result, _ = run(None, "judgebench", "--data", judgebench, "--verdict-file", tmp_path / "out.judged.jsonl",
                    "--out", tmp_path / "again", "--invalid", "exclude")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert scores_of(tmp_path / "again")["Overall"] == 1
    result, _ = run(prefers("good"), "judgebench", "--data", judgebench, "--votes", "2")
    assert isinstance(result.exception, RrmError)
    assert "of a run with other settings" in str(result.exception)


def test_a_killed_run_goes_on(run, judgebench, tmp_path):
    result, _ = run(coin, "judgebench", "--data", judgebench, dies_after=20)
    assert isinstance(result.exception, Killed)
    assert not (tmp_path / "out.json").exists()
    assert not (tmp_path / "out.judged.jsonl").exists()
    result, generator = run(coin, "judgebench", "--data", judgebench)
    assert result.exit_code == 0, result.output
    assert len(generator.requests) == 2 * ROWS - 20
    resumed = read(tmp_path / "out.json")
    for path in tmp_path.glob("out.*"):
        path.unlink()
    run(coin, "judgebench", "--data", judgebench)
    assert read(tmp_path / "out.json") == resumed


class Failing(FakeGenerator):
    """Some requests always fail, as those that a server refuses; `every`: each n-th call does, once."""

    def __init__(self, tokenizer, answer, refuses=lambda request: False, every: int = 0):
        super().__init__(tokenizer, answer, 3)
        self.refuses, self.every, self.calls, self.failures = refuses, every, 0, 0

    def complete(self, request):
        self.calls += 1
        if self.refuses(request) or (self.every and self.calls % self.every == 0):
            self.failures += 1
            raise RrmError("the server refused")
        return super().complete(request)


def test_a_backend_that_fails_now_and_then_loses_nothing(run, model, judgebench, tmp_path):
    generator = Failing(Tokenizer.load(model), coin, every=3)
    result, _ = run(coin, "judgebench", "--data", judgebench, generator=generator)
    assert result.exit_code == 0, result.output
    assert generator.failures >= 2 * ROWS // 3
    unreliable = read(tmp_path / "out.json")
    for path in tmp_path.glob("out.*"):
        path.unlink()
    run(coin, "judgebench", "--data", judgebench)
    assert read(tmp_path / "out.json") == unreliable


@pytest.fixture
def serve(monkeypatch):
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield from stub_servers()


def test_a_server_that_fails_for_a_third_of_calls_gives_the_scores_of_the_engine(
    run, serve, monkeypatch, model, judgebench, tmp_path
):
    """The same verdicts from this machine's devices, from a server, and from the file of either."""
    monkeypatch.setattr("rrm_jax.sampling.remote.RemoteGenerator", functools.partial(RemoteGenerator, patience=QUICK))
    tokenizer, calls = Tokenizer.load(model), itertools.count()

    def answer(path, body):
        if next(calls) % 3 == 2:
            return 503, {}, b"busy"
        text = prefers("good")(tokenizer.decode(body["prompt"]), None)
        return vllm(text, [*tokenizer.encode_control(text), tokenizer.eos_id])

    server = serve(answer)
    result, _ = run(
        prefers("good"), "judgebench", "--data", judgebench, "--backend", server.url, "--backend-model", "m"
    )
    assert result.exit_code == 0, result.output
    assert len(server.bodies) > 2 * ROWS
    there = read(tmp_path / "out.json")
    file = (tmp_path / "out.judged.jsonl").rename(tmp_path / "there.jsonl")
    for path in tmp_path.glob("out.*"):
        path.unlink()
    run(prefers("good"), "judgebench", "--data", judgebench)
    assert read(tmp_path / "out.json") == there
    run(None, "judgebench", "--data", judgebench, "--verdict-file", file, "--out", tmp_path / "again")
    assert read(tmp_path / "again.json")["scores"] == there["scores"]


def test_what_a_backend_refuses_is_listed_and_not_scored(run, model, judgebench, tmp_path):
    tokenizer = Tokenizer.load(model)
    refused = lambda request: "question 7\n" in tokenizer.decode(request.prompt_ids)  # noqa: E731
    generator = Failing(tokenizer, prefers("good"), refused)
    result, _ = run(prefers("good"), "judgebench", "--data", judgebench, generator=generator)
    assert result.exit_code == 1
    assert "not judged: p7: the server refused" in result.stderr
    assert "1 item(s) were not judged, and are not scored" in result.stdout
    facts = read(tmp_path / "out.json")
    assert facts["not_judged"] == {"p7": "the server refused"}
    assert (facts["scores"]["judge"][0]["items"], facts["scores"]["judge"][0]["value"]) == (23, 17 / 23)
    # Later it answers: the one is judged, and no other.
    result, generator = run(prefers("good"), "judgebench", "--data", judgebench)
    assert result.exit_code == 0
    assert len(generator.requests) == 2
    assert scores_of(tmp_path / "out")["Overall"] == 18 / 24


def test_a_backend_that_is_gone_is_given_up(run, model, judgebench, tmp_path):
    generator = Failing(Tokenizer.load(model), coin, lambda request: True)
    result, _ = run(coin, "judgebench", "--data", judgebench, generator=generator)
    assert isinstance(result.exception, RrmError)
    assert "nothing was judged: the server refused" in str(result.exception)
    assert generator.failures < 10
    assert not (tmp_path / "out.judged.jsonl").exists()
    assert not (tmp_path / "out.json").exists()


def test_best_of_n_by_a_knockout(run, tmp_path):
    data = candidates(tmp_path / "candidates.jsonl")
    result, generator = run(prefers("good"), "best-of-n", "--data", data)
    assert result.exit_code == 0, result.output
    named = scores_of(tmp_path / "out")
    assert named == {"Picked": 1, "Mean candidate": 0.25, "Oracle": 1}
    picked = read(tmp_path / "out.json")["scores"]["judge"][0]
    assert picked["counts"]["comparisons"] == 3 * 8
    assert len(generator.requests) == 3 * 8
    again, _ = run(None, "best-of-n", "--data", data, "--verdict-file", tmp_path / "out.judged.jsonl", "--out",
                   tmp_path / "again")  # fmt: skip
    assert again.exit_code == 0, again.output
    assert read(tmp_path / "again.json")["scores"]["ranking"] == read(tmp_path / "out.json")["scores"]["judge"]
    none, _ = run(None, "best-of-n", "--data", data, "--out", tmp_path / "none")
    assert none.exit_code == 0
    assert scores_of(tmp_path / "none") == {"Mean candidate": 0.25, "Oracle": 1}


def test_the_curve_of_best_of_k(run, tmp_path):
    """The right candidate is at 0, 1, 2 and 3 in turns, so that of the first K it is there in K of 4 queries."""
    data = candidates(tmp_path / "candidates.jsonl")
    options = ("--strategy", "round-robin", "--curve", "1,2,3")
    result, generator = run(prefers("good"), "best-of-n", "--data", data, *options)
    assert result.exit_code == 0, result.output
    curve = read(tmp_path / "out.json")["curve"]
    oracles = {size: {one["name"]: one["value"] for one in scores}["Oracle"] for size, scores in curve.items()}
    assert oracles == {"1": 0.25, "2": 0.5, "3": 0.75}
    assert {size: scores[0]["value"] for size, scores in curve.items()} == oracles
    assert [scores[0]["counts"]["comparisons"] for scores in curve.values()] == [0, 8, 24]
    assert len(generator.requests) == 8 * 6  # the whole round robins hold all of the smaller ones
    assert "best of the first" in result.stdout
    result, _ = run(prefers("good"), "best-of-n", "--data", data, "--curve", "0")
    assert "whole numbers from 1" in str(result.exception)


def test_refused_tournaments_are_not_scored(run, model, tmp_path):
    tokenizer = Tokenizer.load(model)
    generator = Failing(tokenizer, prefers("good"), lambda request: "q 2\n" in tokenizer.decode(request.prompt_ids))
    result, _ = run(prefers("good"), "best-of-n", "--data", candidates(tmp_path / "c.jsonl"), generator=generator)
    assert result.exit_code == 1
    facts = read(tmp_path / "out.json")
    assert facts["not_judged"] == {"2": "the server refused"}
    assert facts["scores"]["judge"][0]["items"] == 7


def test_two_runs_are_compared(run, judgebench, tmp_path):
    run(prefers("good"), "judgebench", "--data", judgebench)
    for path in tmp_path.glob("out.*"):
        path.rename(path.with_name(path.name.replace("out.", "first.")))
    result, _ = run(prefers("question"), "judgebench", "--data", judgebench, "--against", tmp_path / "first")
    assert result.exit_code == 0, result.output
    found = read(tmp_path / "out.json")["differences"]
    assert found[0]["name"] == "Overall"
    assert (found[0]["first"], found[0]["second"], found[0]["only_second"]) == (0, 0.75, 18)
    assert found[0]["mcnemar"] == 2 * 0.5**18
    assert "p, McNemar" in result.stdout


def test_published_files_from_the_command_line(run, real_data, tmp_path):
    golden = real_data / "rewardbench_golden" / "rewardbench_v1_golden.json"
    result, _ = run(None, "rewardbench", "--verdict-file", golden, "--judge", "RRM-7b", "--out", tmp_path / "rb")
    assert result.exit_code == 0, result.output
    named = scores_of(tmp_path / "rb")
    assert [round(100 * named[name], 1) for name in ("Chat", "Chat Hard", "Safety", "Reasoning", "Overall")] == [
        87.7, 70.4, 80.7, 90.0, 82.2,
    ]  # fmt: skip
    folder = real_data / "llmbar"
    result, _ = run(None, "llmbar", "--data", folder, "--verdict-file", folder / "judge_winners_slim.json")
    assert result.exit_code == 0, result.output
    assert sum("/Vanilla" in line for line in result.stdout.splitlines()) >= 5
    other = real_data / "pandalm" / "gpt-3.5-turbo-testset-v1.json"
    result, _ = run(None, "llmbar", "--data", folder, "--verdict-file", other)
    assert "is no verdict file of llmbar" in str(result.exception)


def test_what_cannot_be_asked_for(run, judgebench, tmp_path):
    for options, why in (
        (["judgebench"], "--data are needed"),
        (["judgebench", "--data", judgebench], "--model is needed"),
        (["nosuch", "--data", judgebench], "no benchmark 'nosuch'; there are rewardbench, "),
        (["pair", "--data", judgebench], "did you mean pairs?"),
        (["best-of-n", "--data", judgebench, "--invalid", "0"], "missing"),
        (["judgebench", "--data", judgebench, "--groups", "art"], "no rows of art; its groups are livecodebench"),
        (["pandalm", "--verdict-file", judgebench], "give them as --data"),
        (["judgebench", "--data", judgebench, "--strategy", "swiss"], "--strategy is of best-of-N alone"),
        (["judgebench", "--data", judgebench, "--verdict-file", judgebench, "--votes", "3"], "none does here"),
        (["judgebench", "--data", judgebench, "--verdict-file", judgebench, "--verdicts", "v"], "none does here"),
        (["judgebench", "--data", judgebench, "--judge", "gpt"], "the model to judge with is --model"),
    ):
        result, _ = run(None, *options)
        assert isinstance(result.exception, RrmError), options
        assert why in str(result.exception)


def test_nothing_is_written_over(run, judgebench, tmp_path):
    data = judgebench.rename(tmp_path / "out.json")  # as it would be with --data x.json --out x
    before = data.read_bytes()
    result, generator = run(prefers("good"), "judgebench", "--data", data)
    assert "is not this job's" in str(result.exception)
    assert (data.read_bytes(), generator.requests) == (before, [])
    data = data.rename(tmp_path / "gpt.jsonl")
    run(prefers("good"), "judgebench", "--data", data)
    judged = tmp_path / "out.judged.jsonl"
    before = judged.read_bytes()
    result, _ = run(None, "judgebench", "--data", data, "--verdict-file", judged, "--out", tmp_path / "out")
    assert "of a run with other settings" in str(result.exception)
    assert judged.read_bytes() == before
    result, _ = run(prefers("good"), "judgebench", "--data", data, "--verdicts", judged)
    assert "is where results are written" in str(result.exception)
    result, _ = run(prefers("good"), "judgebench", "--data", data, "--verdicts", tmp_path / "out.json")
    assert "would be written to" in str(result.exception)


def test_the_list():
    result = CliRunner().invoke(_app, ["eval", "--list"])
    assert result.exit_code == 0
    for name in ("rewardbench", "rewardbench2", "pandalm", "llmbar", "judgebench", "rm-bench", "ppe-math-best-of-n"):
        assert f"\n{name}\n" in "\n" + result.stdout
