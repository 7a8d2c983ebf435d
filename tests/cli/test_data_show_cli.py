"""`rrm data show` from the outside: known counts and lengths, control tokens, attacks on the terminal, every kind."""

import html
import io
import json
import re
import string
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rrm_jax.cli.main import _app
from rrm_jax.data.overview import Lengths
from rrm_jax.data.prepared import write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import Pair
from rrm_jax.data.stream import PairStream, Part
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.errors import RrmError
from rrm_jax.evaluation.data_page import print_lengths
from rrm_jax.evaluation.prompt_view import prompt_text
from rrm_jax.judging.prompt import fit
from rrm_jax.judging.template import load_template


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a character."""
    directory = tmp_path_factory.mktemp("letters")
    write_word_tokenizer(directory, string.printable)
    return directory


def pair(at: int, **changed) -> dict:
    made = {"id": f"p{at}", "query": f"question {at}", "response_1": "a" * 10 * at, "response_2": "b" * 5, "label": 1}
    return made | {"source": "ab"[at % 2]} | changed


def write(path: Path, rows: list) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def show(*arguments):
    result = CliRunner().invoke(_app, ["data", "show", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, (RrmError, SystemExit)):
        raise result.exception
    return result


def said(result) -> list[str]:
    """The lines, with one blank where there are several."""
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_a_file_by_hand(letters: Path, tmp_path: Path):
    rows = [pair(1), pair(2), pair(3), pair(4, label=2), pair(5, label=None), pair(6, response_1="b" * 5), "{", pair(1)]
    result = show(write(tmp_path / "pairs.jsonl", rows), "--tokenizer", letters, "--examples", 0)
    assert result.exit_code == 1
    assert re.search(r"pairs.jsonl:7: not JSON", result.stderr)
    assert re.search(r"pairs.jsonl:8: id 'p1' appears twice", result.stderr)
    lines = said(result)
    assert lines[0].endswith("pairs.jsonl: pairs")
    for line in [
        "rows: 6, 2 malformed",
        "different queries: 6; rows all of whose texts were there before: 0",
        "empty: none",
        "both responses the same: 1 (16.7 %)",
        "labels: response_1 4 (66.7 %), response_2 1 (16.7 %), none 1 (16.7 %)",
        "the better response is, in characters: longer 3 (60.0 %), shorter 1 (20.0 %), as long 1 (20.0 %)",
        "a 3 50.0 %",
        "b 3 50.0 %",
        "tokens (all 6 rows) p50 p90 p99 max",
        "query 10 10 10 10",
        "response_1 20 50 50 50",  # 10 20 30 40 50 5
        "response_2 5 5 5 5",
        "4–7 ████████ 1 " + "█" * 16 + " 6",  # of response_1, half of its largest, and of response_2
        "8–15 " + "█" * 16 + " 6 ████████ 1",  # of queries, and of response_1
        "16–31 " + "█" * 16 + " 2",
        "cut to fit 4096 tokens: 0 (0.0 %) of 6 prompts",
    ]:
        assert line in lines, line
    shown_first = sum(
        pair.label == 1
        for pair in PairStream([Pair(f"p{at}", "", "", "", 1 + (at == 4)) for at in (1, 2, 3, 4, 6)], 0).batch(0, 5)
    )
    assert f"the better response first in {shown_first} ({20 * shown_first}.0 %) of 5" in result.stdout


def test_near_duplicates_are_counted_on_request(tmp_path: Path):
    """Of 30 words one more makes 27 five-grams of 26, and both short responses are the same: 28 of 29."""
    words = " ".join(f"w{at}" for at in range(30))
    rows = [pair(at, query=query, response_1="a") for at, query in enumerate([words, words + " x", "another", words])]
    path = write(tmp_path / "pairs.jsonl", rows)
    expected = "near duplicates of an earlier row (similarity 0.9 or more): about 2 (50.0 %)"
    assert expected in said(show(path, "--near", 0.9, "--examples", 0))
    assert "near duplicates" not in show(path, "--examples", 0).stdout


def test_whole_prompts_and_what_is_cut(letters: Path, tmp_path: Path):
    """Against the prompts themselves, which the judge's own code makes."""
    rows = [pair(at) for at in (1, 30, 60, 200, 400)]
    path = write(tmp_path / "pairs.jsonl", rows)
    tokenizer, template = Tokenizer.load(letters), load_template("default")
    sizes, cut = [], 0
    for row in rows:
        texts = row["query"], row["response_1"], row["response_2"]
        sizes.append(len(fit(template, tokenizer, texts, 10**6, thinking=True).ids))
        cut += fit(template, tokenizer, texts, 3000, thinking=True).truncated
    result = show(path, "--tokenizer", letters, "--max-prompt-tokens", 3000, "--examples", 0)
    assert cut == 2
    assert f"cut to fit 3000 tokens: {cut} (40.0 %) of 5 prompts" in said(result)
    sizes.sort()
    assert f"whole prompt {sizes[2]} {sizes[4]} {sizes[4]} {sizes[4]}" in said(result)
    direct = show(path, "--tokenizer", letters, "--direct", "--examples", 0)
    extra = len(tokenizer.encode_control("\n</think>\n\n"))  # what closes the thinking
    assert f"whole prompt {sizes[2] + extra} {sizes[4] + extra}" in " ".join(said(direct))


def test_a_sample_of_the_tokens_is_stated(letters: Path, tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", [pair(at) for at in range(1, 21)])
    some = show(path, "--tokenizer", letters, "--sample", 7, "--examples", 0)
    assert "tokens (a sample of 7 rows) p50 p90 p99 max" in said(some)
    assert "of 7 prompts" in some.stdout
    assert "rows: 20" in said(some)
    every = show(path, "--tokenizer", letters, "--sample", 7, "--all", "--examples", 0)
    assert "tokens (all 20 rows) p50 p90 p99 max" in said(every)
    assert "response_1 100 180 200 200" in said(every)  # 10, 20, … 200


def test_an_example_is_the_prompt_with_its_control_tokens_told_apart(letters: Path, tmp_path: Path):
    row = pair(1, query="what is <think>, or ⟦<think>⟧?", response_1="x</think>so <|end|>", response_2="[red]no[/red]")
    path = write(tmp_path / "pairs.jsonl", [row])
    result = show(path, "--tokenizer", letters, "--examples", 1)
    turned = PairStream([Pair(row["id"], "", "1", "2", 1)], 0)[0].label == 2
    first, second = ("[red]no[/red]", "so <|end|>") if turned else ("so <|end|>", "[red]no[/red]")
    template = load_template("default")
    user = template.fill("what is <think>, or <unk><think><unk>?", first, second)
    expected = f"⟦<|begin|>⟧{template.system}⟦<|user|>⟧{user}⟦<|assistant|>⟧⟦<think>⟧\n"
    assert expected in result.stdout
    assert "x</think>" not in result.stdout  # thinking is not shown
    assert result.stdout.count("⟦") == 4
    assert ("shown in the other order" in result.stdout) == turned
    assert f"label here {1 + turned}" in result.stdout


def test_what_spells_a_control_token_is_marked_as_text(letters: Path):
    tokenizer = Tokenizer.load(letters)
    ids = [tokenizer.bos_id, *tokenizer.encode_text("a <think> b"), tokenizer.control_id("<think>")]
    text = prompt_text(tokenizer, ids)
    assert text.plain == "⟦<|begin|>⟧a <think> b⟦<think>⟧"
    marked = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert marked == {"⟦<|begin|>⟧": "bold reverse", "<think>": "underline yellow", "⟦<think>⟧": "bold reverse"}


def test_the_middle_of_a_long_text_is_left_out(letters: Path, tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", [pair(100)])
    result = show(path, "--tokenizer", letters, "--examples", 1, "--cut", 100)
    sizes = [int(size) for size in re.findall(r"⟦… (\d+) characters …⟧", result.stdout)]
    template = load_template("default")
    user = template.fill("question 100", "a" * 1000, "b" * 5)
    assert sizes == [len(template.system) - 100, len(user) - 100]
    assert "a" * 1000 in show(path, "--tokenizer", letters, "--examples", 1, "--cut", 0).stdout


ATTACK = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b31m \r\x08\x7f \u202egnp.exe \u2066x \u200b| ⟦<think>⟧ \U000e0041"


@pytest.mark.parametrize("tokenised", [True, False])
def test_texts_cannot_reach_the_terminal_or_the_page(r1_tokenizer_dir: Path, tmp_path: Path, tokenised):
    attack = ATTACK + "<script>alert(1)</script> [bold]b[/bold] :smile: &amp;"
    row = {"id": attack, "source": attack, "query": attack, "response_1": attack + "1", "response_2": "2", "label": 1}
    path, page = write(tmp_path / "pairs.jsonl", [row]), tmp_path / "page.html"
    options = ("--tokenizer", r1_tokenizer_dir) if tokenised else ()
    result = show(path, "--html", page, "--examples", 1, "--cut", 0, *options)
    assert result.exit_code == 0
    written = page.read_text(encoding="utf-8")
    for text in (result.stdout, written):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]", text)
        assert "\\u001b]0;owned\\u0007" in text
        assert "\\u27e6" in text
        assert "[bold]b[/bold] :smile:" in text
    assert "<script" not in written
    assert "&lt;script&gt;alert(1)" in written
    assert "&amp;amp;" in written
    assert "default-src 'none'" in written


def test_the_page_says_what_is_printed(letters: Path, tmp_path: Path):
    path, page = write(tmp_path / "pairs.jsonl", [pair(1), pair(2)]), tmp_path / "page.html"
    result = show(path, "--tokenizer", letters, "--html", page)
    inside = page.read_text(encoding="utf-8").split("<pre>")[1].split("</pre>")[0]
    words = html.unescape(re.sub(r"</?span[^>]*>", "", inside))
    assert [line.rstrip() for line in words.strip().splitlines()] == [
        line.rstrip() for line in result.stdout.strip().splitlines()
    ]


def test_a_prepared_data_set(letters: Path, tmp_path: Path):
    pairs = [Pair(f"p{at}", f"question {at}", "ä" * at, "b", 1, "made") for at in range(1, 9)]
    write_prepared(tmp_path / "set", RecordsBuilder, pairs, kind="pairs", facts={})
    rows = [vars(pair) for pair in pairs]
    one, two = show(tmp_path / "set"), show(write(tmp_path / "set.jsonl", rows))
    assert (one.exit_code, two.exit_code) == (0, 0)
    assert one.stdout.splitlines()[1:] == two.stdout.splitlines()[1:]
    assert "characters (all 8 rows) p50 p90 p99 max" in said(one)
    assert "response_1 4 8 8 8" in said(one)
    assert "is no prepared data set" in str(show(tmp_path).exception)


def test_a_mix_with_weights(tmp_path: Path):
    big = write(tmp_path / "big.jsonl", [pair(at, source="x") for at in range(1, 7)])
    small = write(tmp_path / "small.jsonl", [pair(at) for at in (6, 7)])
    result = show(big, small, "--weights", "3,1", "--examples", 0)
    assert result.exit_code == 0, result.output
    lines = said(result)
    table = lines[lines.index("the mix") + 1 :]
    parts = [
        Part([Pair(f"p{at}", "", "", "", 1) for at in ids], weight) for ids, weight in [(range(1, 7), 3), ((6, 7), 1)]
    ]
    stream = PairStream(parts, 0)
    places = [stream.place(at) for at in range(8)]
    first = [sum(not place.turned for place in places if place.part == part) for part in (0, 1)]
    assert table[0] == "part weight rows repeated drawn passes better first"
    assert table[1].endswith(f"big.jsonl 3 6 0 75.0 % 1.00 {100 * first[0] / 6:.1f} %")
    assert table[2].endswith(f"small.jsonl 1 2 1 25.0 % 1.00 {100 * first[1] / 2:.1f} %")
    assert table[3].endswith("passes: in 8 draws, one for each row")
    assert table[4].startswith("as a trainer shows them (seed 0, 8 draws): the better response first in ")
    assert table[4].endswith(f" {sum(first) / 0.08:.1f} %")
    assert "first epoch" not in result.stdout
    # x: 3/4 of the draws, and of small.jsonl one row of a and one of b
    assert table[6:9] == ["x 75.0 %", "a 12.5 %", "b 12.5 %"]
    for weights, message in [
        ("3", "for each of the 2 paths"),
        ("3,0", "a positive number"),
        ("x,1", "of the form 5,1,1"),
    ]:
        assert message in str(show(big, small, "--weights", weights).exception)


def test_examples_of_a_mix_are_in_the_mixs_order(letters: Path, tmp_path: Path):
    rows = [pair(at) for at in range(1, 9)]
    paths = [write(tmp_path / f"{name}.jsonl", rows) for name in "ab"]
    result = show(*paths, "--weights", "1,3", "--tokenizer", letters, "--examples", 8, "--seed", 4)
    found = re.findall(r"example p(\d) .*label here (\d)", result.stdout)
    pairs = [Pair(f"p{at}", "", "", "", 1) for at in range(1, 9)]
    stream = PairStream([Part(pairs, 1), Part(pairs, 3)], 4)
    expected = {}
    for place in map(stream.place, range(40)):
        if place.epoch == 0:
            expected[place.part, place.row + 1] = stream.at(place).label
    assert len(found) == len(expected) == 16
    assert [int(label) for _, label in found] == [expected[at // 8, int(name)] for at, (name, _) in enumerate(found)]


def test_a_narrow_terminal_has_room_for_ranges_and_counts():
    console = Console(width=60, file=io.StringIO(), markup=False)
    print_lengths(
        console, "tokens", "all", {name: Lengths([3, 9, 9, 1000]) for name in ("query", "one", "two", "whole")}
    )
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "8–15 ██ 2 ██ 2 ██ 2 ██ 2" in lines
    assert lines[-1].startswith("512–1023 █ 1")


def test_paths_without_weights_are_no_mix(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", [pair(1)])
    result = show(path, path)
    assert "the mix" not in result.stdout
    assert result.stdout.count("(seed 0, first epoch)") == 2


def test_a_training_config(letters: Path, tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", [pair(at) for at in range(1, 41)])
    given = [f"data.train={path}", f"model.path={letters}", "judge.max_prompt_tokens=2000", "seed=5"]
    result = show("--config", "rrm_7b.yaml", *given, "data.limit=30", "--examples", 0)
    assert result.exit_code == 0, result.output
    first = sum(
        pair.label == 1 for pair in PairStream([Pair(f"p{at}", "", "", "", 1) for at in range(1, 31)], 5).batch(0, 30)
    )
    for words in (
        "rows: 30\n",
        f"(seed 5, first epoch): the better response first in {first} (",
        "cut to fit 2000 tokens",
    ):
        assert words in result.stdout
    result = show("--config", "rrm_7b.yaml", f"data.train={path}", "model.path=nowhere", "--examples", 0)
    assert result.exit_code == 0
    assert "model.path nowhere is not here" in result.stderr
    assert "characters (all 40 rows)" in result.stdout
    assert "--weights are for paths" in str(show("--config", "rrm_7b.yaml", "--weights", "1").exception)
    assert "name what to look at" in str(show().exception)


def test_the_mix_of_a_training_config(tmp_path: Path):
    paths = [write(tmp_path / f"{name}.jsonl", [pair(at) for at in range(1, 9)]) for name in "ab"]
    mix = json.dumps([{"path": str(path), "weight": weight} for path, weight in zip(paths, (4, 1), strict=True)])
    result = show("--config", "rrm_7b.yaml", f"data.train={mix}", "data.limit=5", "--examples", 0)
    assert result.exit_code == 0, result.output
    assert said(result).count("rows: 5") == 2  # the limit is of each part
    by_weights = show(*paths, "--weights", "4,1", "--examples", 0)
    for row in ("a.jsonl 4 5 0 80.0 % 1.60", "b.jsonl 1 5 5 20.0 % 0.40"):
        assert any(row in line for line in said(result))
    assert "a.jsonl 4 8 0 80.0 % 1.60" in " ".join(said(by_weights))


def test_judged_rows(tmp_path: Path):
    def vote(order, verdict, tokens):
        return {
            "order": order, "verdict": verdict, "text": f"\x1b[1m{order}", "tokens": tokens, "finish_reason": "stop",
            "truncated_input": False, "forced": False, "probability": None,
        }  # fmt: skip

    rows = [
        {"id": "1", "winner": 1, "label": 1, "correct": True, "votes": [vote("12", 1, 10), vote("21", 1, 20)]},
        {"id": "2", "winner": None, "votes": [vote("12", 1, 30), vote("21", 2, 40)]},
        {"id": "3", "winner": 3, "votes": []},
        {"id": "4", "winner": None, "votes": [vote("12", None, 50) | {"tokens": "x"}]},
    ]
    result = show(write(tmp_path / "judged.jsonl", rows), "--examples", 1)
    assert result.exit_code == 1
    lines = said(result)
    for line in [
        "rows: 2, 2 malformed",
        "winners: response_1 1, response_2 0, none 1",
        "accuracy: 1.0000 = 1 / 1 labelled pairs (no winner counts 0.5)",
        "tokens (4 votes) p50 p90 p99 max",
        "vote 20 40 40 40",
        "\\u001b[1m12",
    ]:
        assert line in lines, line
    assert "order consistency: 0.5000 = 1 / 2" in result.stdout
    assert "the one shown first won 75.0 % of 4 valid votes" in result.stdout


def test_candidates_and_questions(letters: Path, tmp_path: Path):
    rows = [{"id": 1, "query": "q", "responses": ["x</think>aaa", "b"], "correct": [True, False]}]
    result = show(write(tmp_path / "candidates.jsonl", rows), "--tokenizer", letters)
    assert "candidates.jsonl: candidates" in result.stdout
    for line in ["responses a row (rows × responses): 1 × 2", "responses 1 3 3 3", "query 1 1 1 1"]:
        assert line in said(result)
    assert "responses: right 1, wrong 1, not known 0" in result.stdout
    assert "⟦<|assistant|>⟧⟦<think>⟧" in result.stdout
    rows = [{"id": 1, "query": "1 + 1?", "answer": "2", "verifier": "math"}, {"id": 2, "query": "why?"}]
    result = show(write(tmp_path / "questions.jsonl", rows), "--tokenizer", letters, "--examples", 2)
    for line in ["with an answer: 1 (50.0 %)", "verifiers: math 1, (none named) 1", "⟦query⟧ 1 + 1?", "⟦answer⟧ 2"]:
        assert line in said(result)


def test_real_pairs(r1_tokenizer_dir: Path, real_data: Path, tmp_path: Path):
    """LLMBar's natural pairs with R1's tokenizer: lengths as the tokenizers library counts them by itself."""
    import tokenizers

    given = json.loads((real_data / "llmbar" / "llmbar-natural.json").read_text(encoding="utf-8"))
    fields = {"query": "input", "response_1": "output_1", "response_2": "output_2", "label": "label"}
    rows = [{"id": at} | {name: row[theirs] for name, theirs in fields.items()} for at, row in enumerate(given)]
    result = show(write(tmp_path / "llmbar.jsonl", rows), "--tokenizer", r1_tokenizer_dir, "--examples", 1, "--cut", 0)
    assert result.exit_code == 0
    raw = tokenizers.Tokenizer.from_file(str(r1_tokenizer_dir / "tokenizer.json"))
    lengths = sorted(len(raw.encode(row["query"], add_special_tokens=False).ids) for row in rows)
    assert f"query {lengths[49]} {lengths[89]} {lengths[98]} {lengths[99]}" in said(result)
    longer = sum(len(row[f"response_{row['label']}"]) > len(row[f"response_{3 - row['label']}"]) for row in rows)
    assert f"longer {longer} (" in result.stdout
    assert result.stdout.count("⟦<｜User｜>⟧## Query") == 1
    assert "⟦<｜Assistant｜>⟧⟦<think>⟧" in result.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[]\n", "no usable row"),
        ('{"id": 1, "prompt": "x"}\n', "are of no known kind of row"),
        (None, "cannot read"),
    ],
)
def test_what_cannot_be_shown(tmp_path: Path, content, message):
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert message in str(show(path).exception)


def test_strict_stops_at_the_first_malformed_row(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", [pair(1), "[]"])
    assert "pairs.jsonl:2: expected a JSON object" in str(show(path, "--strict").exception)
