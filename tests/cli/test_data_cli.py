"""`rrm data filter` from the outside: which pairs stay, byte for byte; kills, outages, other jobs' files, bad input."""

import hashlib
import json
import re
import string
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rrm_jax.cli import loading
from rrm_jax.cli.main import _app
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.testing import tiny_config, write_hf_checkpoint
from tests.judging.fake_generator import FakeGenerator, Killed, coin, prefers
from tests.sampling.stub_server import stub_servers, vllm

RIGHT = (4, 0, 3, 4, 1, 2, 4, 4)
"""Of four votes on pair 0, 1, …: the first so many are right."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer of one token a character."""
    directory = tmp_path_factory.mktemp("model")
    vocabulary = write_word_tokenizer(directory, string.printable)
    write_hf_checkpoint(directory, tiny_config(vocab_size=vocabulary, max_positions=8192))
    return directory


serve = pytest.fixture(stub_servers, name="serve")


def line(at: int, **changed) -> str:
    """A pair with a field that this package does not know, written as its own encoder would not."""
    good, bad = f"good {at}", f"bad {at}"
    label = 1 + at % 2
    first, second = (good, bad) if label == 1 else (bad, good)
    row = {"source": "ab"[at % 2], "id": f"é{at}", "query": f"question {at}", "response_1": first}
    row |= {"response_2": second, "label": label, "own": [1.50, None]} | changed
    return json.dumps(row, ensure_ascii=at % 3 == 0, separators=(" , ", ":  "))


def write(path: Path, lines: list[str]) -> Path:
    path.write_bytes("\n".join([*lines, ""]).encode())
    return path


def by_count(prompt: str, request) -> str:
    """RIGHT votes for the good response, then invalid ones for even pairs and wrong ones for odd pairs."""
    at = int(re.search(r"question (\d)", prompt).group(1))
    if request.sample < RIGHT[at]:
        return prefers("good")(prompt, request)
    return prefers("bad")(prompt, request) if at % 2 else "hm…"


@pytest.fixture
def filter(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path):
    """Runs `rrm data filter` with a fake model on pairs.jsonl → (result, generator)."""
    pairs = write(tmp_path / "pairs.jsonl", [line(at) for at in range(8)])

    def run(answer, *options, pairs: Path = pairs, out: Path = tmp_path / "out.jsonl", dies_after: int | None = None):
        generator = FakeGenerator(Tokenizer.load(model), answer, 3, dies_after)
        monkeypatch.setattr(loading, "open_model", lambda *args: generator)
        arguments = ["data", "filter", "--model", model, "--pairs", pairs, "--out", out, "--max-new-tokens", 64]
        result = CliRunner().invoke(_app, [str(word) for word in (*arguments, *options)])
        if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit, Killed)):
            raise result.exception
        return result, generator

    return run


def results(directory: Path, name: str = "out.jsonl") -> tuple[bytes, bytes]:
    return (directory / name).read_bytes(), (directory / f"{name}.dropped.jsonl").read_bytes()


def test_pairs_with_only_right_votes_are_dropped(filter, tmp_path: Path):
    result, generator = filter(by_count)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "pairs.jsonl").read_bytes().splitlines(keepends=True)
    kept, dropped = results(tmp_path)
    assert kept == b"".join(lines[at] for at in (1, 2, 4, 5))
    assert dropped == b"".join(lines[at] for at in (0, 3, 6, 7))
    said = [" ".join(words.split()) for words in result.stdout.splitlines()]
    assert said[3:-1] == [
        "right votes pairs share",
        "0 1 12.5 % kept",
        "1 1 12.5 % kept",
        "2 1 12.5 % kept",
        "3 1 12.5 % kept",
        "4 4 50.0 % dropped",
        "kept: 4 of 8 pairs (50.0 %); dropped for more than 3 right votes: 4, for fewer than 0: 0",
        "kept of a: 2 of 4 pairs (50.0 %)",  # of pairs 0 2 4 6
        "kept of b: 2 of 4 pairs (50.0 %)",
    ]
    # 22 right votes; pairs 1 and 5 have 4 + 2 wrong ones, pairs 2 and 4 have 1 + 3 invalid ones, which were cut off.
    assert "votes: 32 (invalid: 4, cut off at the token limit: 4, with inputs truncated: 0" in result.stdout
    # Majorities: 0, 2, 3, 6, 7 right; 4 right (one valid vote); 1 wrong; 5 has none, half a credit.
    assert "accuracy: 0.8125 = 6.5 / 8 labelled pairs" in result.stdout
    assert "32 votes drawn now, 0 found in the store" in result.stdout
    assert len(generator.requests) == 32
    facts = json.loads((tmp_path / "out.jsonl.run.json").read_text(encoding="utf-8"))
    assert {name: facts["config"][name] for name in ("votes", "order", "keep_at_most", "keep_at_least")} == {
        "votes": 4, "order": "random", "keep_at_most": 3, "keep_at_least": 0,
    }  # fmt: skip
    assert facts["inputs"]["pairs"]["sha256"] == hashlib.sha256(b"".join(lines)).hexdigest()


def test_each_vote_has_a_drawn_order(filter, tmp_path: Path):
    """A judge that always names what is shown first is right in about half of its votes, never by the label."""
    result, _ = filter(lambda prompt, request: "</think>\\boxed{Assistant 1}", "--votes", "16")
    counts = [int(words.split()[1]) for words in result.stdout.splitlines() if re.match(r" +\d+ +\d", words)]
    right = sum(at * count for at, count in enumerate(counts))
    assert sum(counts) == 8
    assert 64 - 3 * 5.66 < right < 64 + 3 * 5.66  # three standard deviations of 128 fair coins
    assert counts[0] == counts[16] == 0


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        (("--keep-at-least", "1"), {0, 1, 3, 6, 7}),
        (("--keep-at-most", "2"), {0, 2, 3, 6, 7}),
        (("--keep-at-most", "4", "--keep-at-least", "2"), {1, 4}),
        (("--votes", "2"), {0, 2, 3, 5, 6, 7}),
        (("--keep-at-most", "0"), {0, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_limits_and_a_shared_store(filter, tmp_path: Path, options, dropped):
    filter(by_count)
    out = tmp_path / "again.jsonl"
    result, generator = filter(by_count, *options, "--verdicts", tmp_path / "out.jsonl.votes.jsonl", out=out)
    assert (result.exit_code, generator.requests) == (0, [])
    lines = (tmp_path / "pairs.jsonl").read_bytes().splitlines(keepends=True)
    assert results(tmp_path, "again.jsonl") == (
        b"".join(lines[at] for at in range(8) if at not in dropped),
        b"".join(lines[at] for at in range(8) if at in dropped),
    )


def test_everything_dropped_is_an_empty_file(filter, tmp_path: Path):
    result, _ = filter(prefers("good"))
    assert result.exit_code == 0
    assert results(tmp_path) == (b"", (tmp_path / "pairs.jsonl").read_bytes())
    assert "kept: 0 of 8 pairs (0.0 %)" in result.stdout


def test_rows_go_over_byte_for_byte(filter, tmp_path: Path):
    """Windows line ends, blank lines, no end of the last line; joined again, every row is there."""
    rows = [line(0).encode() + b"\r\n", line(1).encode() + b"  \n", b"\n", line(2).encode() + b"\n", line(3).encode()]
    pairs = tmp_path / "odd.jsonl"
    pairs.write_bytes(b"".join(rows))
    result, _ = filter(by_count, pairs=pairs)
    assert result.exit_code == 0
    assert results(tmp_path) == (rows[1] + rows[3], rows[0] + rows[4] + b"\n")
    again, generator = filter(by_count, pairs=pairs)
    assert (again.exit_code, generator.requests) == (0, [])


def test_killed_anywhere_it_ends_up_the_same(filter, tmp_path: Path):
    first, _ = filter(coin)
    expected, report = results(tmp_path), first.stdout.splitlines()[:-1]
    for dies_after in (0, 1, 9, 20, 31):
        for file in tmp_path.glob("out.jsonl*"):
            file.unlink()
        result, _ = filter(coin, dies_after=dies_after)
        assert isinstance(result.exception, Killed)
        assert not (tmp_path / "out.jsonl").exists()
        with open(tmp_path / "out.jsonl.votes.jsonl", "ab") as file:
            file.write(b'{"key":"3f')  # what a kill in mid-write leaves
        result, generator = filter(coin)
        assert result.exit_code == 0, result.output
        assert len(generator.requests) == 32 - dies_after
        assert (results(tmp_path), result.stdout.splitlines()[:-1]) == (expected, report)
    result, generator = filter(coin)
    assert generator.requests == []
    assert (results(tmp_path), result.stdout.splitlines()[:-1]) == (expected, report)
    assert result.stdout.splitlines()[-1].startswith("0 votes drawn now, 32 found in the store")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.jsonl", "out.jsonl.dropped.jsonl", "out.jsonl.run.json", "out.jsonl.votes.jsonl", "pairs.jsonl",
    ]  # fmt: skip


def test_an_outage_is_no_verdict(serve, model: Path, tmp_path: Path, monkeypatch):
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    tokenizer, count = Tokenizer.load(model), iter(range(100))
    pairs = write(tmp_path / "pairs.jsonl", [line(at) for at in range(4)])

    def right(path, body):
        text = prefers("good")(tokenizer.decode(body["prompt"]), None)
        return vllm(text, [*tokenizer.encode_text(text), tokenizer.eos_id])

    def run(answer):
        server = serve(answer)
        arguments = ["data", "filter", "--model", model, "--pairs", pairs, "--out", tmp_path / "out.jsonl"]
        arguments += ["--backend", server.url, "--backend-model", "m", "--concurrency", 1, "--direct"]
        arguments += ["--max-new-tokens", 64]
        return CliRunner().invoke(_app, [str(word) for word in arguments]), server

    gone = (503, {"Retry-After": "86400"}, b"maintenance")
    result, _ = run(lambda path, body: right(path, body) if next(count) < 5 else gone)
    assert isinstance(result.exception, RrmError)
    assert "out of service" in str(result.exception)
    assert not (tmp_path / "out.jsonl").exists()
    kept = len((tmp_path / "out.jsonl.votes.jsonl").read_text(encoding="utf-8").splitlines()) - 1
    assert 4 <= kept <= 5
    result, server = run(right)
    assert result.exit_code == 0, result.output
    assert len(server.bodies) == 16 - kept
    assert "votes: 16 (invalid: 0" in result.stdout
    assert results(tmp_path) == (b"", pairs.read_bytes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "1"), "seed: was 0, is now 1"),
        (("--votes", "3", "--keep-at-most", "3", "--keep-at-least", "1"), "votes: was 4, is now 3"),
        (("--keep-at-most", "2"), "keep_at_most: was 3, is now 2"),
        (("--keep-at-least", "1"), "keep_at_least: was 0, is now 1"),
    ],
)
def test_changed_settings_are_refused(filter, tmp_path: Path, options, message):
    filter(by_count)
    before = results(tmp_path)
    result, generator = filter(by_count, *options)
    assert message in str(result.exception)
    assert (generator.requests, results(tmp_path)) == ([], before)


def test_what_another_job_wrote_is_not_overwritten(filter, tmp_path: Path):
    filter(by_count)
    before = results(tmp_path)
    lines = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    edited = write(tmp_path / "edited.jsonl", [lines[0].replace("good", "better"), *lines[1:]])
    result, generator = filter(by_count, pairs=edited)
    assert "out.jsonl.dropped.jsonl holds 1 row(s) that are not in" in str(result.exception)
    fewer = write(tmp_path / "fewer.jsonl", [*lines[:1], *lines[3:]])
    assert "out.jsonl holds 2 row(s) that are not in" in str(filter(by_count, pairs=fewer)[0].exception)
    (tmp_path / "out.jsonl.run.json").unlink()
    assert "it is not this job's" in str(filter(by_count)[0].exception)
    (tmp_path / "out.jsonl").unlink()  # what was dropped is a result too
    assert "dropped.jsonl exists, but not" in str(filter(by_count)[0].exception)
    assert (generator.requests, (tmp_path / "out.jsonl.dropped.jsonl").read_bytes()) == ([], before[1])


def test_more_pairs_go_on_with_the_votes(filter, tmp_path: Path):
    pairs = tmp_path / "grows.jsonl"
    filter(by_count, pairs=write(pairs, [line(at) for at in range(4)]))
    result, generator = filter(by_count, pairs=write(pairs, [line(at) for at in range(8)]))
    assert (result.exit_code, len(generator.requests)) == (0, 16)
    assert sum(map(len, results(tmp_path))) == len(pairs.read_bytes())


def test_the_pairs_themselves_are_never_written_to(filter, tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"
    before = pairs.read_bytes()
    for options, out in [((), pairs), (("--verdicts", pairs), tmp_path / "out.jsonl")]:
        result, generator = filter(by_count, *options, out=out)
        assert "pairs.jsonl would be written to" in str(result.exception)
    moved = pairs.rename(tmp_path / "out.jsonl.dropped.jsonl")
    assert "would be written to" in str(filter(by_count, pairs=moved)[0].exception)
    result, _ = filter(by_count, "--verdicts", tmp_path / "o.dropped.jsonl", pairs=moved, out=tmp_path / "o")
    assert "is where results are written" in str(result.exception)
    assert (generator.requests, moved.read_bytes()) == ([], before)


def test_pairs_that_change_meanwhile_are_an_error(filter, tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"

    def answer(prompt, request):
        if request.sample == 3:
            write(pairs, [line(at) for at in range(7)])
        return by_count(prompt, request)

    assert "was changed while it was judged" in str(filter(answer)[0].exception)
    assert not (tmp_path / "out.jsonl").exists()


def test_unlabelled_pairs_are_an_error(filter, tmp_path: Path):
    rows = [line(0), line(1, label=None), line(2).replace('"label"', '"best"')]
    result, generator = filter(coin, pairs=write(tmp_path / "some.jsonl", rows))
    assert "some.jsonl: 2 of 3 pairs have no label, id 'é1' the first" in str(result.exception)
    assert generator.requests == []


def test_malformed_rows_are_reported_and_passed_over(filter, tmp_path: Path):
    rows = ["[]", line(0), line(1, label=3), line(0), line(2), "{"]
    pairs = write(tmp_path / "bad.jsonl", rows)
    result, generator = filter(by_count, pairs=pairs)
    assert result.exit_code == 1
    assert results(tmp_path) == ((rows[4] + "\n").encode(), (rows[1] + "\n").encode())
    for number, why in [(1, "expected a JSON object"), (3, "must be 1, 2 or null"), (4, "twice"), (6, "not JSON")]:
        assert re.search(f"bad.jsonl:{number}: .*{why}", result.stderr)
    assert "4 malformed row(s)" in result.stderr
    result, generator = filter(by_count, "--strict", pairs=pairs, out=tmp_path / "strict.jsonl")
    assert "bad.jsonl:1: expected a JSON object" in str(result.exception)
    assert generator.requests == []


@pytest.mark.parametrize(("content", "message"), [("", "is empty"), ("[]\n", "no usable row"), (None, "cannot read")])
def test_files_without_rows(filter, tmp_path: Path, content, message):
    pairs = tmp_path / "empty.jsonl"
    if content is not None:
        pairs.write_text(content, encoding="utf-8")
    assert message in str(filter(coin, pairs=pairs)[0].exception)
    assert not list(tmp_path.glob("out.jsonl*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep-at-most", "4"), "nothing would be dropped"),
        (("--keep-at-most", "5"), "must be between 0 and 4"),
        (("--keep-at-most", "1", "--keep-at-least", "2"), "the least not above the most"),
        (("--template", "nope"), "no template 'nope'"),
    ],
)
def test_wrong_options(filter, tmp_path: Path, options, message):
    result, generator = filter(coin, *options)
    assert message in str(result.exception)
    assert (generator.requests, list(tmp_path.glob("out.jsonl*"))) == ([], [])


def test_a_full_disk_keeps_the_votes(filter, tmp_path: Path, monkeypatch):
    from rrm_jax.data import whole_files

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(whole_files.os, "replace", full)
        said = str(filter(by_count)[0].exception)
    assert "No space left on device; every vote is kept" in said
    assert not list(tmp_path.glob(".*partial"))
    result, generator = filter(by_count)
    assert (result.exit_code, generator.requests) == (0, [])
