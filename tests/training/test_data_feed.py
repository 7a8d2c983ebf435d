"""From files to prompts: mixes, shares of processes, workers, caches; the same prompts whatever the way."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm_jax.config import load_config
from rrm_jax.data.pairs import open_pairs
from rrm_jax.data.prepared import FACTS, write_prepared
from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.records import Pair, Question, parse_labelled_pair
from rrm_jax.data.stream import PairStream, Part, swap
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.data.word_tokenizer import write_word_tokenizer
from rrm_jax.data.workers import in_order
from rrm_jax.errors import RrmError
from rrm_jax.judging.prompt import fit
from rrm_jax.judging.template import load_template
from rrm_jax.quickstart import world
from rrm_jax.training.config import TrainConfig
from rrm_jax.training.feed import Feed
from rrm_jax.training.run import read_rows
from rrm_jax.training.token_cache import Encode, open_token_cache
from rrm_jax.training.training_data import data_files, open_parts

MAX_TOKENS = 36


def pairs(count: int, name: str = "p") -> list[Pair]:
    return [
        Pair(f"{name}{at}", f"Last digit of {at}", f"<think>x</think>{at}", "5" * at, 1 + at % 2) for at in range(count)
    ]


@pytest.fixture(scope="module")
def encode(tmp_path_factory) -> Encode:
    directory = tmp_path_factory.mktemp("words")
    write_word_tokenizer(directory, world.WORDS)
    (directory / "template.toml").write_text(world.TEMPLATE, encoding="utf-8")
    return Encode(load_template(directory / "template.toml"), Tokenizer.load(directory), MAX_TOKENS, thinking=True)


def write_jsonl(path: Path, rows) -> Path:
    text = "".join(json.dumps({**vars(row)}, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("not JSON\n\n" + text, encoding="utf-8")
    return path


# Mixes


def test_a_mix_draws_by_weight_and_gives_every_part_whole_epochs():
    parts = [Part(pairs(40, "a"), 5), Part(pairs(9, "b")), Part(pairs(16, "c")), Part(pairs(100, "d"))]
    drawn = PairStream(parts, seed=3).batch(0, 2_000)
    counts = Counter()
    for end, pair in enumerate(drawn, 1):
        counts[pair.id[0]] += 1
        assert all(abs(counts[name] - share * end / 8) <= 1 for name, share in zip("abcd", (5, 1, 1, 1), strict=True))
    for name, size in (("a", 40), ("b", 9), ("c", 16)):
        own = [pair.id for pair in drawn if pair.id[0] == name]
        epochs = [own[at : at + size] for at in range(0, len(own) - size, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert drawn[1_000:1_010] == PairStream(parts, seed=3).batch(1_000, 10)
    assert drawn[:100] != PairStream(parts, seed=4).batch(0, 100)


def test_one_part_is_the_stream_of_its_rows():
    rows = pairs(20)
    assert PairStream([Part(rows, 7)], 1).batch(0, 60) == PairStream(rows, 1).batch(0, 60)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "no rows"),
        ([Part([], 1)], "no rows"),
        ([Part(pairs(1), 0)], "above 0"),
        ([Part(pairs(1), float("nan"))], "0"),
    ],
)
def test_impossible_mixes_are_errors(parts, words):
    with pytest.raises(RrmError, match=words):
        PairStream(parts, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 10**9), st.lists(st.integers(1, 30), min_size=1, max_size=3))
def test_the_label_always_goes_with_the_better_response(seed, start, sizes):
    parts = [
        Part([Pair(f"{at}", "q", "good", "bad", 1) for at in range(size)], at + 1) for at, size in enumerate(sizes)
    ]
    for pair in PairStream(parts, seed).batch(start, 8):
        assert (pair.response_1 if pair.label == 1 else pair.response_2) == "good"


def test_half_of_the_pairs_are_turned_and_anew_in_each_epoch():
    stream = PairStream([Part(pairs(500), 1), Part(pairs(500), 1)], 0)
    turned = [{(p.part, p.row): p.turned for p in map(stream.place, range(at, at + 1000))} for at in (0, 1000)]
    assert all(430 < sum(each.values()) < 570 for each in turned)
    assert 400 < sum(turned[0][key] != turned[1][key] for key in turned[0]) < 600


# Processes

_PROCESS = """
import hashlib, sys
from pathlib import Path
from rrm_jax.data.pairs import open_pairs
from rrm_jax.data.stream import Part, PairStream
from rrm_jax.data.tokenizer import Tokenizer
from rrm_jax.judging.template import load_template
from rrm_jax.training.feed import Feed
from rrm_jax.training.token_cache import Encode
template, tokenizer, longest, process, count, *files = sys.argv[1:]
parts = [Part(open_pairs(Path(file), print), len(files) - at) for at, file in enumerate(files)]
feed = Feed(PairStream(parts, 5), Encode(load_template(template), Tokenizer.load(Path(tokenizer)), int(longest), True))
shard = feed.shard(16, 8, int(process), int(count))
for _ in range(3):
    shown = [(pair, hashlib.sha256(str(ids).encode()).hexdigest()) for pair, ids, _ in next(shard)]
    print(*(f"{pair.id}:{pair.label}:{digest}" for pair, digest in shown))
"""


def shares(count: int, template: str | Path, tokenizer: Path, longest: int, files: list[Path]) -> list[list[str]]:
    """What `count` processes of their own get of three batches of 8 prompts, from position 16 on."""
    arguments = [sys.executable, "-c", _PROCESS, str(template), str(tokenizer), str(longest)]
    run = [
        subprocess.Popen([*arguments, str(process), str(count), *map(str, files)], stdout=subprocess.PIPE, text=True)
        for process in range(count)
    ]
    return [each.communicate()[0].splitlines()[-3:] for each in run]


def digest(ids) -> str:
    return hashlib.sha256(str(ids).encode()).hexdigest()


def joined(shared: list[list[str]]) -> list[str]:
    return [each for batch in range(3) for mine in shared for each in mine[batch].split()]


@pytest.mark.thorough
def test_processes_share_one_global_order(encode, tmp_path):
    files = [write_jsonl(tmp_path / "a.jsonl", pairs(30, "a")), tmp_path / "b"]
    write_prepared(files[1], RecordsBuilder, pairs(20, "b"), kind="pairs", facts={})
    (tmp_path / "template.toml").write_text(world.TEMPLATE, encoding="utf-8")
    write_word_tokenizer(tmp_path, world.WORDS)
    parts = [Part(open_pairs(file, print), 2 - at) for at, file in enumerate(files)]
    feed = Feed(PairStream(parts, 5), encode)
    whole = [f"{pair.id}:{pair.label}:{digest(ids)}" for pair, ids, _ in feed.take(16, 24)]
    for count in (2, 4):
        assert joined(shares(count, tmp_path / "template.toml", tmp_path, MAX_TOKENS, files)) == whole
    with pytest.raises(RrmError, match="cannot be split evenly over 3"):
        next(feed.shard(0, 8, 0, 3))


# The feed


def take_share(feed: Feed) -> list:
    shard = feed.shard(500, 6, 1, 2)
    return [*next(shard), *next(shard)]


@pytest.mark.thorough
def test_prompts_are_the_same_with_workers_from_a_cache_and_as_the_judge_is_shown_them(encode, tmp_path):
    rows = [open_pairs(write_jsonl(tmp_path / "a.jsonl", pairs(30, "a")), lambda _: None), pairs(11, "b")]
    stream = PairStream([Part(rows[0], 2), Part(rows[1], 1)], 7)
    caches = [open_token_cache(tmp_path / "cache", part, str(at), encode) for at, part in enumerate(rows)]
    feeds = [Feed(stream, encode), Feed(stream, encode, workers=2), Feed(stream, encode, caches=caches)]
    plain, *others = [[*feed.take(5, 40), *feed.take(45, 20), *take_share(feed)] for feed in feeds]
    for feed in feeds:
        feed.close()
    assert others == [plain, plain]
    assert {asked.truncated for asked in plain} == {True, False}
    for pair, ids, truncated in plain:
        answer = [response.rpartition("</think>")[2] for response in (pair.response_1, pair.response_2)]
        made = fit(encode.template, encode.tokenizer, (pair.query, *answer), MAX_TOKENS, thinking=True)
        assert (list(ids), truncated) == (made.ids, made.truncated)


def test_both_orders_follow_one_another(encode):
    rows = pairs(6)
    shown = Feed(PairStream(rows, 0), encode, both_orders=True).take(3, 4)
    assert len(shown) == 8
    for first, second in zip(shown[::2], shown[1::2], strict=True):
        assert second.row == swap(first.row)
        assert second.prompt_ids == encode(second.row).prompt_ids(turned=False)


def test_workers_leave_the_accelerator_alone_raise_and_end(encode):
    with in_order(_Worker(encode), 1, 3) as items:
        assert next(items) == (3, False)
        assert multiprocessing.active_children()
        with pytest.raises(Exception, match="number 4"):
            next(items)
    assert not multiprocessing.active_children()


@dataclasses.dataclass
class _Worker:
    encode: Encode

    def __call__(self, index: int) -> tuple[int, bool]:
        """Whether any device was taken: grain imports JAX where it is installed, which takes none."""
        from jax._src import xla_bridge

        self.encode(pairs(1)[0])
        if index == 4:
            raise RrmError("number 4")
        return index, xla_bridge.backends_are_initialized()


@pytest.mark.thorough
def test_a_killed_reader_goes_on_with_the_same_prompts(encode, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", pairs(50))
    code = """
import os, signal, sys
from rrm_jax.data.pairs import open_pairs
from rrm_jax.data.stream import PairStream
from rrm_jax.data.workers import in_order
def main():
    start, kill, workers = map(int, sys.argv[2:])
    with in_order(PairStream(open_pairs(sys.argv[1], print), 1).__getitem__, workers, start) as items:
        for at, pair in zip(range(20), items):
            print(pair.id, pair.label, flush=True)
            if at == kill:
                os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    main()
"""
    (tmp_path / "reader.py").write_text(code)
    run = functools.partial(
        subprocess.run, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )

    def read(start: int, kill: int, workers: int) -> list[str]:
        numbers = map(str, (start, kill, workers))
        done = run([sys.executable, str(tmp_path / "reader.py"), str(tmp_path / "a.jsonl"), *numbers])
        assert done.returncode == (-signal.SIGKILL if kill >= 0 else 0), done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith("p")]

    cut = read(60, 7, 1)
    stream = PairStream(pairs(50), 1)
    assert [*cut, *read(60 + len(cut), -1, 0)[: 14 - len(cut)]] == [f"{p.id} {p.label}" for p in stream.batch(60, 14)]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_whole_group_is_the_readers_to_heed(tmp_path, name):
    code = """
import os, signal, sys
from rrm_jax.data.workers import in_order
def main():
    os.setpgrp()
    noted = []
    signal.signal(getattr(signal, sys.argv[1]), lambda *_: noted.append(1))
    with in_order(abs, 1) as items:
        first = next(items)
        os.killpg(0, getattr(signal, sys.argv[1]))
        rest = [item for _, item in zip(range(100), items)]
    print(noted, [first, *rest] == list(range(101)))
if __name__ == "__main__":
    main()
"""
    (tmp_path / "reader.py").write_text(code)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "reader.py"), name], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.stdout == "[1] True\n", done.stderr


# The cache


def test_two_that_make_one_cache_at_once_do_not_meet(encode, tmp_path):
    """As on two hosts whose containers number their processes alike: here two threads of one process."""
    together = threading.Barrier(2)
    rows = pairs(20)

    def make(_) -> int:
        met = iter([together.wait])
        return open_token_cache(tmp_path, rows, "x", encode, progress=lambda: next(met, lambda: None)()).tokens

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one, two = pool.map(make, range(2))
    assert one == two > 0
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_is_of_these_pairs_and_this_tokenizer_only(encode, tmp_path):
    home, rows = tmp_path / "cache", pairs(5)
    counted = []
    open_token_cache(home, rows, "x", encode, progress=lambda: counted.append(1))
    open_token_cache(home, rows, "x", encode, progress=lambda: counted.append(1))
    assert len(counted) == 5
    for changed in ({"max_prompt_tokens": 40}, {"thinking": False}):
        open_token_cache(home, rows, "x", Encode(**{**vars(encode), **changed}))
    open_token_cache(home, rows, "y", encode)
    assert len([*home.iterdir()]) == 4
    (broken,) = [path for path in home.iterdir() if json.loads((path / "cache.json").read_text())["data"] == "y"]
    (broken / "ids.uint32").write_bytes((broken / "ids.uint32").read_bytes()[:-8])
    with pytest.raises(RrmError, match="damaged"):
        open_token_cache(home, rows, "y", encode)
    with pytest.raises(RrmError, match="cannot be used"):
        open_token_cache(Path("/proc/nothing"), rows, "y", encode)


# Files


def test_jsonl_rows_are_read_where_they_stand(tmp_path):
    reported = []
    path = write_jsonl(tmp_path / "a.jsonl", [Pair("é", "q\n\U0001f600", "a" * 100_000, "b", 2), *pairs(9)])
    rows = open_pairs(path, reported.append)
    assert (len(rows), len(reported)) == (10, 1)
    assert "a.jsonl:1: not JSON" in reported[0]
    assert rows[0].response_1 == "a" * 100_000
    assert rows[1:] == pairs(9)
    assert [*open_pairs(path, reported.append, limit=3)] == rows[:3]
    fresh = open_pairs(path, reported.append)
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(RrmError, match="was changed"):
        fresh[0]


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ([Question("1", "q", "a")], "questions", "holds questions, not pairs; rrm data synthesize"),
        ([*pairs(2), Pair("u", "q", "a", "b")], "pairs", "1 of 3 pairs .* no label"),
    ],
)
def test_prepared_data_that_cannot_be_trained_on(tmp_path, rows, kind, words):
    write_prepared(tmp_path / "out", RecordsBuilder, rows, kind=kind, facts={})
    with pytest.raises(RrmError, match=words):
        open_pairs(tmp_path / "out", print)
    with pytest.raises(RrmError, match="neither a JSONL file nor a prepared"):
        open_pairs(tmp_path, print)


def test_a_configuration_names_files_and_mixes(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", pairs(6, "a"))
    write_prepared(tmp_path / "b", RecordsBuilder, pairs(4, "b"), kind="pairs", facts={})
    given = ["output=x", "steps=1", "model.path=m", "data.limit=3"]

    def config(train: str) -> TrainConfig:
        return load_config(TrainConfig, None, [*given, f"data.train={train}"])

    mix = config(f"[{{path: {tmp_path}/a.jsonl, weight: 5}}, {{path: {tmp_path}/b}}]")
    assert [(len(part.rows), part.weight) for part in open_parts(mix, lambda _: None)] == [(3, 5.0), (3, 1.0)]
    assert set(data_files(mix)) == {"train[0]", "train[1]"}
    given.append(f"data.eval={tmp_path}/b")
    assert data_files(config(str(tmp_path / "b"))) == dict.fromkeys(("train", "eval"), tmp_path / "b" / FACTS)
    assert read_rows(f"{tmp_path}/b", parse_labelled_pair, 2, print) == pairs(4, "b")[:2]
    with pytest.raises(RrmError, match="weight"):
        config("[{path: a, weight: 0}]")
    with pytest.raises(RrmError, match="empty"):
        open_parts(config("[]"), print)
