"""`rrm judge` and `rrm template` from the outside: files in, files out, exit codes, kills."""

import hashlib
import json
import os
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli import loading
from rrm_jax.cli.main import _app
from rrm_jax.data.jsonl import Reader
from rrm_jax.data.prepared import FACTS, write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import parse_pair
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.provenance import fingerprint, pinned
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from tests.judging.fake_generator import FakeGenerator, Killed, coin, prefers


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer of one token a character."""
    directory = tmp_path_factory.mktemp("model")
    vocabulary = write_word_tokenizer(directory, string.printable)
    write_hf_checkpoint(directory, tiny_config(vocab_size=vocabulary, max_positions=8192))
    return directory


def write_pairs(path: Path, count: int = 12) -> Path:
    rows = [
        {"id": at, "query": f"question {at}", "response_1": f"good {at}", "response_2": f"bad {at}", "label": 1}
        for at in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows), "a row appears twice"
    return {row["id"]: row for row in rows}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path):
    """Runs `rrm judge` with a fake model: `judge(answer, *options, dies_after=None)` → (result, generator)."""

    def run(answer, *options: str, dies_after: int | None = None, pairs: Path | None = None):
        generator = FakeGenerator(Tokenizer.load(model), answer, 3, dies_after)
        monkeypatch.setattr(loading, "open_model", lambda *args: generator)
        pairs = pairs or write_pairs(tmp_path / "pairs.jsonl")
        arguments = ["judge", "--model", str(model), "--pairs", str(pairs), "--out", str(tmp_path / "out.jsonl")]
        result = CliRunner().invoke(_app, [*arguments, "--max-new-tokens", "64", *options])
        if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit, Killed)):
            raise result.exception
        return result, generator

    return run


def test_judges_a_file(judge, tmp_path: Path):
    result, generator = judge(prefers("good"), "--votes", "2", "--order", "both")
    assert result.exit_code == 0, result.output
    rows = read_rows(tmp_path / "out.jsonl")
    assert set(rows) == {str(at) for at in range(12)}
    assert all(row["winner"] == 1 and row["correct"] is True and len(row["votes"]) == 4 for row in rows.values())
    assert "pairs judged: 12 (without a winner: 0)" in result.stdout
    assert "votes: 48 (invalid: 0, cut off at the token limit: 0, with inputs truncated: 0, " in result.stdout
    assert "forced by the thinking budget: 0)" in result.stdout
    assert "accuracy: 1.0000 = 12 / 12" in result.stdout
    assert "order consistency: 1.0000 = 24 / 24" in result.stdout
    assert "judging: 12/12" in result.stderr
    facts = json.loads((tmp_path / "out.jsonl.run.json").read_text(encoding="utf-8"))
    assert facts["config"]["votes"] == 2
    assert facts["config"]["order"] == "both"
    pairs = tmp_path / "pairs.jsonl"
    assert facts["inputs"]["pairs"]["sha256"] == hashlib.sha256(pairs.read_bytes()).hexdigest()
    assert len(generator.requests) == 48


def test_a_prepared_data_set_is_judged_as_its_file_is(judge, tmp_path: Path):
    judge(coin, "--votes", "2")
    expected = read_rows(tmp_path / "out.jsonl")
    rows = [pair for _, pair in Reader(tmp_path / "pairs.jsonl", parse_pair)]
    write_prepared(tmp_path / "prepared", RecordsBuilder, rows, kind="pairs", facts={})
    result, _ = judge(coin, "--votes", "2", "--out", str(tmp_path / "other.jsonl"), pairs=tmp_path / "prepared")
    assert result.exit_code == 0, result.output
    assert read_rows(tmp_path / "other.jsonl") == expected
    facts = json.loads((tmp_path / "other.jsonl.run.json").read_text(encoding="utf-8"))
    assert facts["inputs"]["pairs"]["sha256"] == fingerprint(tmp_path / "prepared" / FACTS)
    (tmp_path / "folder").mkdir()
    result, _ = judge(coin, "--out", str(tmp_path / "third.jsonl"), pairs=tmp_path / "folder")
    assert "rrm data convert" in str(result.exception)


def test_says_what_the_model_has_no_words_for(judge, tmp_path: Path):
    assert "<unk>" not in judge(prefers("good"))[0].stderr
    row = {"id": "1", "query": "wörter", "response_1": "good", "response_2": "日本"}
    (tmp_path / "other.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    result, _ = judge(prefers("good"), "--out", str(tmp_path / "other.out"), pairs=tmp_path / "other.jsonl")
    assert result.exit_code == 0
    assert "of the first texts' 11 tokens 2 are <unk>" in result.stderr  # what stands together is one


def test_invalid_verdicts_are_half_credit_and_counted(judge):
    result, _ = judge(lambda prompt, request: "hm…")
    assert "pairs judged: 12 (without a winner: 12)" in result.stdout
    assert "votes: 12 (invalid: 12, cut off at the token limit: 12" in result.stdout
    assert "accuracy: 0.5000 = 6 / 12 labelled pairs (no winner counts 0.5)" in result.stdout


def test_killed_anywhere_the_output_ends_up_the_same(judge, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    options = ("--votes", "2", "--order", "both")
    judge(coin, *options)
    expected, report = read_rows(out), None
    for dies_after in (0, 1, 7, 20, 47):
        for file in tmp_path.glob("out.jsonl*"):
            file.unlink()
        result, _ = judge(coin, *options, dies_after=dies_after)
        assert isinstance(result.exception, Killed)
        with open(out, "ab") as file:
            file.write(b'{"id": "3", "winner"')  # what a kill in mid-write leaves
        result, generator = judge(coin, *options)
        assert result.exit_code == 0, result.output
        assert len(generator.requests) == 48 - dies_after
        assert read_rows(out) == expected
        report = report or result.stdout
        assert result.stdout == report
    result, generator = judge(coin, *options)
    assert generator.requests == []
    assert (read_rows(out), result.stdout) == (expected, report)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--seed", "1"), "seed: was 0, is now 1"),
        (("--temperature", "1.0"), "temperature: was 0.6, is now 1.0"),
        (("--votes", "2"), "votes: was 1, is now 2"),
        (("--order", "given"), "order: was 'random', is now 'given'"),
        (("--direct",), "thinking: was True, is now False"),
        (("--dtype", "bfloat16"), "model: was"),
    ],
)
def test_changed_settings_are_refused(judge, changed, message):
    judge(coin, dies_after=5)
    result, generator = judge(coin, *changed)
    assert message in str(result.exception)
    assert generator.requests == []


def test_changed_texts_and_foreign_outputs_are_refused(judge, tmp_path: Path):
    judge(coin, "--order", "given")
    pairs = tmp_path / "edited.jsonl"
    text = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8")
    pairs.write_text(text.replace("good 3", "better 3"), encoding="utf-8")
    result, _ = judge(coin, "--order", "given", pairs=pairs)
    assert "the row with id '3' was judged on other text" in str(result.exception)
    pairs.write_text(
        "".join(text.splitlines(keepends=True)[6:]) + text.splitlines()[0].replace('"id": 0', '"id": "new"')
    )
    result, generator = judge(coin, "--order", "given", pairs=pairs)
    assert (result.exit_code, len(generator.requests)) == (0, 0)  # the same texts: their vote is known
    assert "pairs judged: 7" in result.stdout
    assert "also holds 6 row(s)" in result.stderr
    (tmp_path / "out.jsonl.run.json").unlink()
    result, _ = judge(coin)
    assert "is not this job's" in str(result.exception)


def test_jobs_share_a_store(judge, tmp_path: Path):
    """Side by side in other numbers, orders, seeds: nothing is drawn twice, and all comes out as alone."""
    store = ("--verdicts", str(tmp_path / "shared" / "store.jsonl"))
    jobs = {
        ("--votes", "2", "--order", "both"): 48,
        ("--votes", "3", "--order", "both"): 24,
        ("--votes", "3", "--order", "given"): 0,
        ("--seed", "1", "--order", "given"): 12,
        ("--votes", "2", "--order", "both", "--seed", "0"): 0,
    }
    for at, (options, drawn) in enumerate(jobs.items()):
        alone, shared = tmp_path / f"alone_{at}.jsonl", tmp_path / f"shared_{at}.jsonl"
        judge(coin, *options, "--out", str(alone))
        result, generator = judge(coin, *options, *store, "--out", str(shared))
        assert (result.exit_code, len(generator.requests)) == (0, drawn)
        assert read_rows(shared) == read_rows(alone)
    assert not list(tmp_path.glob("shared_*.votes.jsonl"))
    result, generator = judge(coin, "--votes", "3", *store, "--out", str(tmp_path / "shared_0.jsonl"))
    assert "votes: was 2, is now 3" in str(result.exception)
    assert generator.requests == []


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.run.json"])
def test_a_store_is_not_the_output(judge, tmp_path: Path, name: str):
    result, generator = judge(coin, "--verdicts", str(tmp_path / name))
    assert "is where results are written" in str(result.exception)
    assert generator.requests == []


def test_pairs_are_no_store(judge, tmp_path: Path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 1)
    pairs.write_bytes(before := pairs.read_bytes()[:-1])
    result, _ = judge(coin, "--verdicts", str(pairs), pairs=pairs)
    assert "pairs.jsonl:1: not a row of a verdict store" in str(result.exception)
    assert pairs.read_bytes() == before


def test_one_run_of_an_output_at_a_time(judge, tmp_path: Path):
    judge(coin, dies_after=3)
    facts = tmp_path / "out.jsonl.run.json"
    config = json.loads(facts.read_text(encoding="utf-8"))["config"]
    before = (tmp_path / "out.jsonl").read_bytes()
    with pinned(facts, config=config, seed=0, inputs={}):
        result, generator = judge(coin)
        assert "out.jsonl.run.json is being written by another run" in str(result.exception)
        assert (generator.requests, (tmp_path / "out.jsonl").read_bytes()) == ([], before)
    facts.write_bytes(facts.read_bytes() + b"the end of longer facts")
    assert judge(coin)[0].exit_code == 0
    assert json.loads(facts.read_text(encoding="utf-8"))["config"] == config
    facts.write_text("{}", encoding="utf-8")
    assert "does not say how a run was configured" in str(judge(coin)[0].exception)


BAD_LINES = [
    '{"id": "x", "query": "q"',
    '{"id": "y", "query": "q", "response_1": "a"}',
    '{"id": 0}',
    "[]",
    '{"id": "z"}',
]


def test_malformed_rows_are_reported_and_passed_over(judge, tmp_path: Path):
    pairs = write_pairs(tmp_path / "bad.jsonl", 4)
    good = pairs.read_text(encoding="utf-8")
    repeated = good.splitlines()[0]
    pairs.write_text(BAD_LINES[0] + "\n" + good + "\n".join([*BAD_LINES[1:], repeated]) + "\n", encoding="utf-8")
    result, generator = judge(coin, pairs=pairs)
    assert result.exit_code == 1
    assert len(generator.requests) == len(read_rows(tmp_path / "out.jsonl")) == 4
    for number, why in [(1, "not JSON"), (6, "'response_2' is missing"), (8, "expected a JSON object"), (10, "twice")]:
        assert f"bad.jsonl:{number}: " in result.stderr
        assert why in result.stderr.split(f"bad.jsonl:{number}: ")[1].splitlines()[0]
    assert "6 malformed row(s)" in result.stderr
    result, generator = judge(coin, "--strict", pairs=pairs)
    assert "bad.jsonl:1: not JSON" in str(result.exception)
    assert generator.requests == []


@pytest.mark.parametrize(("content", "message"), [("", "is empty"), ("[]\n", "no usable row")])
def test_files_without_rows(judge, tmp_path: Path, content: str, message: str):
    pairs = tmp_path / "empty.jsonl"
    pairs.write_text(content, encoding="utf-8")
    result, _ = judge(coin, pairs=pairs)
    assert message in str(result.exception)
    assert not (tmp_path / "out.jsonl").exists()
    result, _ = judge(coin, pairs=tmp_path / "missing.jsonl")
    assert "cannot read" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mesh", "data=1,fdsp=2"), "'fdsp=2' is not one of data=N"),
        (("--dtype", "int8"), "not one of auto, float32, bfloat16"),
        (("--top-p", "0"), r"top_p must be in (0, 1]"),
        (("--template", "nope"), "no template 'nope'"),
        (("--max-new-tokens", "8192"), "leaves no room for a prompt"),
    ],
)
def test_wrong_options(judge, options, message):
    result, generator = judge(coin, *options)
    assert message in str(result.exception)
    assert generator.requests == []


def test_prompts_are_cut_to_the_models_positions(judge):
    result, _ = judge(coin, "--max-prompt-tokens", "9000")
    assert "the model has 8192 positions: prompts are cut to 8128 tokens, not 9000" in result.stderr


def test_a_model_without_tokenizer_is_refused_before_its_weights_are_read(tmp_path: Path):
    write_hf_checkpoint(tmp_path / "model", tiny_config())
    arguments = ["--model", str(tmp_path / "model"), "--pairs", str(write_pairs(tmp_path / "p.jsonl"))]
    result = CliRunner().invoke(_app, ["judge", *arguments, "--out", str(tmp_path / "o.jsonl")])
    assert isinstance(result.exception, RrmError)
    assert "holds no tokenizer" in str(result.exception)
    assert "loaded" not in result.stderr


def test_released_weights_with_another_template_warn(judge, model: Path, tmp_path: Path, monkeypatch):
    renamed = tmp_path / "RRM-7B"
    renamed.symlink_to(model)
    result, _ = judge(coin, "--model", str(renamed))
    assert "RRM-7B looks like released RRM weights" in result.stderr
    assert result.exit_code == 0


def run_rrm(*arguments: str | Path, **options) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[2] / ".jax_cache")}
    command = [sys.executable, "-c", "from rrm_jax.cli.main import app; app()", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


@pytest.mark.thorough
def test_kill_9_and_restart_with_a_real_model(model: Path, tmp_path: Path):
    pairs, out = write_pairs(tmp_path / "pairs.jsonl", 40), tmp_path / "out.jsonl"
    template = tmp_path / "short.toml"
    template.write_text('system = ""\nuser = "{query} 1: {response_1} 2: {response_2}"', encoding="utf-8")
    log = tmp_path / "out.jsonl.votes.jsonl"
    arguments = ["judge", "--model", model, "--pairs", pairs, "--out", out, "--order", "both", "--batch-size", 4]
    arguments += ["--max-new-tokens", 64, "--template", template]
    process = run_rrm(*arguments)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 9):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = log.read_bytes().count(b"\n") - 1
    assert 8 <= kept < 80
    process = run_rrm(*arguments)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert set(read_rows(out)) == {str(at) for at in range(40)}
    assert log.read_bytes().count(b"\n") == 81
    assert len({json.loads(line).get("key") for line in log.read_text(encoding="utf-8").splitlines()}) == 81
    assert "votes: 80 " in stdout
    assert "attention: xla" in stderr


def test_template_verb(tmp_path: Path, real_data: Path):
    released = str(real_data / "rrm_official" / "judge_prompt.json")
    result = CliRunner().invoke(_app, ["template", released, "--out", str(tmp_path / "r.toml")])
    assert result.exit_code == 0
    assert "This is the prompt that the released RRM-7B and RRM-32B" in result.stdout
    again = CliRunner().invoke(_app, ["template", str(tmp_path / "r.toml")])
    assert again.stdout == result.stdout
    result = CliRunner().invoke(_app, ["template", "default", "--out", str(tmp_path / "r.toml")])
    assert "exists already" in str(result.exception)
    assert "This is not the prompt" in CliRunner().invoke(_app, ["template", "default"]).stdout
