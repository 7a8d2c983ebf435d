"""What is left out of a data set: against similarities by hand, exact sets, and real data."""

import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrm_jax.data import cleaning
from rrm_jax.data.contamination import Benchmarks, read_prompts
from rrm_jax.data.language import LanguageFilter
from rrm_jax.data.near_duplicates import Match, NearDuplicates, row_shingles, texts_of
from rrm_jax.data.records import Candidates, Pair, Question
from rrm_jax.data.shingles import jaccard, normalise, shingles
from rrm_jax.errors import RrmError

ALPHABET = list("abcdefghijklmnopqrstuvwxyz")


def test_texts_are_the_same_whatever_their_case_blanks_and_composition():
    assert normalise(" Caf\u0065\u0301 \n\t STRASSE\u3000x ") == normalise("CAF\u00c9 straße x")
    assert normalise("1 2") != normalise("12")
    assert normalise("\u00a0\n") == ""


def test_shingles_by_hand():
    """Words a b c d e have three trigrams; a b c is one of them, and a shorter text is none."""
    whole, part, short = (shingles(text, 3) for text in ("A, b; c  d. E", "a b c", "a b"))
    assert (len(whole), len(part), len(short)) == (3, 1, 1)
    assert set(part) < set(whole)
    assert not set(short) & set(whole)
    assert np.array_equal(short, shingles("(a) b!", 3))
    assert not np.array_equal(short, shingles("b a", 3))
    assert np.array_equal(shingles("1+2", 3), shingles("1-2", 3))
    assert not np.array_equal(shingles("1+2", 3, symbols=True), shingles("1-2", 3, symbols=True))
    assert len(shingles("写一篇文章", 2)) == 4  # each character is a word
    assert len(shingles("?!", 3)) == 1  # a text without words is a word
    assert len(shingles(" ", 3)) == 0


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.integers(1, 5))
def test_shingles_are_the_words_in_a_row(words, size):
    """Property: as many different ones as there are different tuples of words."""
    size = min(size, len(words)) or 1
    tuples = {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} if words else set()
    assert len(shingles(" ".join(words), size)) == len(tuples)


def test_similarity_by_hand():
    """10 words have 6 five-grams. Two texts that differ in the last word share 5 of 7."""
    one, other = " ".join(ALPHABET[:10]), " ".join([*ALPHABET[:9], "z"])
    assert jaccard(row_shingles([one]), row_shingles([other])) == 5 / 7
    assert jaccard(row_shingles([one, "x"]), row_shingles(["x", one])) == 1
    assert jaccard(row_shingles([""]), row_shingles([""])) == 0


def words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(10**6)}" for _ in range(count)]


def grams(text: str) -> set[tuple[str, ...]]:
    """Five words in a row, by Python's own sets."""
    split = text.split()
    return {tuple(split[at : at + 5]) for at in range(len(split) - 4)}


def test_near_duplicates_against_exact_sets():
    """Every pair of 150 texts compared exactly: what is found is similar enough, and nearly all that is is found."""
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(50):
        text = words(rng, 100)
        for changed in (0, 1, 4):
            made = list(text)
            for at in rng.sample(range(100), changed):
                made[at] = "changed"
            texts.append(" ".join(made))
    rng.shuffle(texts)
    sets = [grams(text) for text in texts]
    similar = {
        (one, two): len(sets[one] & sets[two]) / len(sets[one] | sets[two])
        for one, two in itertools.combinations(range(150), 2)
        if sets[one] & sets[two]
    }
    near = NearDuplicates(0.8)
    for text in texts:
        near.add([text])
    found = near.matches(lambda one, two: jaccard(*(row_shingles([texts[at]]) for at in (one, two))))
    for row, match in found.items():
        assert match.similarity == pytest.approx(similar[match.row, row])
        assert match.similarity >= 0.8
        assert match.row not in found  # what a row repeats stays
    kept = [row for row in range(150) if row not in found]
    missed = [pair for pair in itertools.combinations(kept, 2) if similar.get(pair, 0) >= 0.8]
    assert len(missed) <= 2
    assert 45 <= len(found) <= 60  # one changed word: 91/101; four: about 80/116; both to each other about 0.6
    estimated = near.matches()
    assert len(set(estimated) ^ set(found)) <= 15
    for row, match in estimated.items():
        assert abs(match.similarity - similar[match.row, row]) < 5 * 0.036


def test_near_duplicates_depend_on_the_seed_alone():
    rng = random.Random(1)
    texts = [" ".join(words(rng, 40)) for _ in range(20)]
    texts += [text + " more" for text in texts]
    made = []
    for seed in (0, 0, 1):
        near = NearDuplicates(0.8, seed)
        for text in texts:
            near.add([text])
        made.append(near.matches())
    assert made[0] == made[1]
    assert made[0] != made[2]  # estimates are others
    assert {row: match.row for row, match in made[0].items()} == {20 + at: at for at in range(20)}


def test_rows_without_words_are_near_nothing():
    near = NearDuplicates(0.5)
    for text in ("", " ", "a b", "c d", "a b"):
        near.add([text])
    assert near.matches() == {4: Match(2, 1.0)}
    assert NearDuplicates(0.5).matches() == {}
    with pytest.raises(RrmError, match=r"0.3 to 0.98, not 1"):
        NearDuplicates(1.0)


def test_many_rows_of_one_template():
    """Rows that are much alike, and not enough: none is dropped, and their number does not decide the time."""
    rng = random.Random(2)
    template = words(rng, 40)
    near = NearDuplicates(0.9)
    for _ in range(400):
        near.add([" ".join([*template, *words(rng, 8)])])  # 36 of 52 shared
    asked = []
    assert near.matches(lambda one, two: asked.append((one, two)) or 36 / 52) == {}
    assert len(asked) <= 4 * 400


def test_what_rows_are_compared_by():
    pair = Pair("1", "q", "b", "x</think>a", 1)
    assert texts_of(pair) == ["q", "a", "b"] == texts_of(Candidates("2", "q", ("a", "b")))
    assert texts_of(pair, "query") == ["q"] == texts_of(Question("3", "q", "4"))


def reasons(check: cleaning.Filter, *records) -> list[str | None]:
    made = [check(number, record) for number, record in enumerate(records, start=1)]
    assert {reason.name for reason in made if reason} <= set(check.names)
    return [f"{reason.name} {reason.detail}".strip() if reason else None for reason in made]


def test_problems_and_ids():
    assert reasons(
        cleaning.Problems(),
        Pair("1", "q", "a", "b"),
        Pair("2", " \n", "a", "b"),
        Pair("3", "q", "a", "a thought</think> "),
        Pair("4", "q", "x</think>a", "a"),
        Candidates("5", "q", ("a", "a")),
        Candidates("6", "q", ("a", "")),
        Question("7", ""),
    ) == [
        None, "empty query", "empty response response 2 of 2", "identical responses", None,
        "empty response response 2 of 2", "empty query",
    ]  # fmt: skip
    one, two = Question("1", "q"), Question("2", "q")
    assert reasons(cleaning.RepeatedIds(), one, two, one) == [None, None, "repeated id 1"]


def test_duplicates():
    rows = [Pair("1", "Q  q", "a", "b", 1), Pair("2", "q Q", "B", "t</think>a", 1), Pair("3", "q q", "a", "c")]
    check = cleaning.Duplicates()
    assert reasons(check, *rows) == [None, "duplicate", None]
    assert check(4, rows[1]).matched == [{"row": 1}]
    assert reasons(cleaning.Duplicates("query"), *rows) == [None, "duplicate", "duplicate"]
    # Where one text ends and the next begins counts.
    assert reasons(cleaning.Duplicates(), Pair("1", "q", "a b", "c"), Pair("2", "q", "a", "b c")) == [None, None]


def test_token_limits():
    check = cleaning.TokenLimits(len, 3, 5, 2)
    rows = [Pair("1", "qqq", "aaaaa", "bb"), Pair("2", "qqqq", "a", "b"), Pair("3", "q", "bb", "aaaaaa")]
    rows += [Pair("4", "q", "aaaaaaa</think>bb", "a")]
    assert reasons(check, *rows, Question("5", "qqq"), Question("6", "qqqq")) == [
        None, "long query 4 tokens", "long response response 2: 6 tokens", "short response response 2: 1 tokens",
        None, "long query 4 tokens",
    ]  # fmt: skip


FRENCH = "Quelle est la capitale de la France, et combien d'habitants compte-t-elle ?"
ENGLISH = "What is the capital of France, and how many people live there?"
CHINESE = "写一篇关于春天的文章，要求不少于五百字。"


def test_languages():
    only = cleaning.Languages(LanguageFilter(["en"], 0.8))
    texts = [
        ENGLISH,
        FRENCH,
        CHINESE,
        "oui",
        "$x^2 = 4$ et \\frac{\\alpha}{\\beta}",
        "```\nfor i in range(3): pass\n```",
        "",
    ]
    found = reasons(only, *(Question(str(at), text) for at, text in enumerate(texts)))
    assert [reason and reason.split()[:2] for reason in found] == [
        None, ["language", "fr"], ["language", "zh"], None, None, None, None,
    ]  # fmt: skip
    pair = Pair("1", ENGLISH, ENGLISH, FRENCH)
    assert reasons(only, pair) == [None]
    assert reasons(cleaning.Languages(LanguageFilter(["en"], 0.8), responses=True), pair)[0].startswith("language fr")
    assert LanguageFilter(["en", "fr", "zh"], 0.0).other(FRENCH) is None
    assert LanguageFilter(["en"], 1.0).other(FRENCH) is None  # never as sure as that
    with pytest.raises(RrmError, match="english: no language known here"):
        LanguageFilter(["en", "english"], 0.8)


def test_overlaps_by_hand():
    """n = 3. The prompt a…f has 4 trigrams."""
    benchmarks = Benchmarks(3, 0.5)
    for id, prompt in [("p", "A b c, d e f"), ("short", "x y"), ("long", " ".join(ALPHABET))]:
        benchmarks.add("bench", id, prompt)

    def found(query):
        return [(one.id, one.of_query, one.of_prompt) for one in benchmarks.find(query)]

    assert found("a b c d e f") == [("p", 1, 1), ("long", 1, 4 / 24)]
    assert found("a b c d z") == [("p", 2 / 3, 2 / 4), ("long", 2 / 3, 2 / 24)]
    assert found("a b c z y x w") == []  # one of 5, and of 4
    assert found("so, a b c d e f: what is it? Tell me all you know of it") == [("p", 4 / 15, 1)]
    assert found("X, y!") == [("short", 1, 1)]
    assert found("x y z") == [("long", 1, 1 / 24)]  # the short prompt only whole
    assert found("x") == found("") == []


def test_the_largest_overlaps_of_each_benchmark():
    benchmarks = Benchmarks(3, 0.5)
    for at in range(9):
        benchmarks.add("one", str(at), " ".join([*ALPHABET[:20], str(at)]))
    benchmarks.add("two", "same", " ".join(ALPHABET[:20]))
    found = benchmarks.find(" ".join(ALPHABET[:20]))
    assert [(one.benchmark, one.id) for one in found] == [("one", str(at)) for at in range(5)] + [("two", "same")]


def test_prompts_of_any_columns(tmp_path):
    path, said = tmp_path / "bench.jsonl", []
    rows = [
        {"id": 7, "prompt": "p"}, {"question": "q", "answer": "x"}, {"problem": ""}, {"input": "i", "id": "k"},
        {"instruction": "do", "input": "this"}, {"instruction": "do", "input": ""},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, {"prompt": 3},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"query": "\\ud800"}\n{', encoding="utf-8")
    assert list(read_prompts(path, said.append)) == [
        ("7", "p"), ("bench.jsonl:2", "q"), ("k", "i"), ("bench.jsonl:5", "do\nthis"), ("bench.jsonl:6", "do"),
        ("bench.jsonl:7", "u"), ("bench.jsonl:9", "?"),
    ]  # fmt: skip
    assert [message.split(":")[1] for message in said] == ["3", "8", "10"]
    path.write_text('{"answer": "x"}\n', encoding="utf-8")
    with pytest.raises(RrmError, match="has no prompt: no row has text in one of query, prompt"):
        list(read_prompts(path, said.append))


def test_llmbar_is_contaminated_with_itself(real_data):
    files = sorted((real_data / "llmbar").glob("llmbar-*.json"))
    queries = [row["input"] for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    assert len(queries) == 419
    benchmarks = Benchmarks()
    for file in files:
        for id, prompt in read_prompts(file, print):
            benchmarks.add(file.stem, id, prompt)
    for query in queries:
        best = benchmarks.find(query)[0]
        assert (best.of_query, best.of_prompt) == (1, 1)


def test_gsm8k_train_against_its_test(real_data):
    """Published as disjoint: exact sets of words in a row say which few questions are nearly the same."""
    files = [real_data / "gsm8k" / f"{part}.jsonl" for part in ("train", "test")]
    train, test = (
        [json.loads(line)["question"] for line in file.read_text(encoding="utf-8").splitlines()] for file in files
    )
    benchmarks = Benchmarks()
    for id, prompt in read_prompts(real_data / "gsm8k" / "test.jsonl", print):
        benchmarks.add("test", id, prompt)
    assert len(benchmarks) == len(test) == 1319
    found = {at: benchmarks.find(query) for at, query in enumerate(train)}
    assert [at for at in found if found[at]] == [1314, 5162]
    for at in (1314, 5162):
        (match,) = found[at]
        prompt = test[int(match.id.partition(":")[2]) - 1]
        own, its = (
            {tuple(plain[start : start + 8]) for start in range(len(plain) - 7)}
            for plain in (
                "".join(c if c.isalnum() else " " for c in text.casefold()).split() for text in (train[at], prompt)
            )
        )
        assert (match.of_query, match.of_prompt) == (len(own & its) / len(own), len(own & its) / len(its))
