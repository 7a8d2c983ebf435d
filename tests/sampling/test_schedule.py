"""The scheduler alone: who gets which row and place, what is prefilled, and that nothing depends on chance."""

import numpy as np
import pytest

from rrm_jax.sampling.buckets import bucket, chunk_size
from rrm_jax.sampling.protocol import Decoding, Request
from rrm_jax.sampling.schedule import Schedule

HOW = Decoding(1.0, max_new_tokens=8)


def request(name: str, ids, sample: int = 0) -> Request:
    return Request(name, tuple(ids), HOW, sample)


def fill(schedule: Schedule, requests) -> list[int]:
    """Takes requests in and prefills until no more can start: the rows that did."""
    for each in requests:
        schedule.add(each)
    schedule.rows_per_prompt = schedule.group()
    if not schedule.residents:
        schedule.resize_prompts(schedule.prompts_wanted(), 4096)
    started = schedule.start_rows()
    while True:
        schedule.admit()
        if schedule.next_chunk() is None:
            return started
        started += schedule.start_rows()


def check_table(schedule: Schedule) -> None:
    """Each live row stands once in the table, in its own part, beside the prompt that it continues."""
    length, rows, place = schedule.table()
    ways, prompts, group = rows.shape
    per_part = len(schedule.rows) // ways
    for row in schedule.live():
        part, at = divmod(row, per_part)
        prompt, number = divmod(int(place[part, at]), group)
        assert rows[part, prompt, number] == at
        resident = schedule.residents[part * prompts + prompt]
        assert resident.key == schedule.rows[row].request.prompt_ids
        assert length[part * prompts + prompt] == len(resident.key)


def test_buckets_are_few_and_waste_at_most_a_third():
    sizes = {bucket(n) for n in range(1, 4097)}
    assert sizes == {32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096}
    assert all(n <= bucket(n) <= max(32, n * 3 / 2) for n in range(1, 4097))


def test_a_prompt_is_cut_into_few_kinds_of_chunks_with_little_padding():
    kinds = set()
    for length in range(1, 5000, 7):
        filled = computed = 0
        while filled < length:
            size = chunk_size(length - filled)
            computed += size
            kinds.add(size)
            filled += min(size, length - filled)
        assert computed - length < max(32, length / 3)
    assert kinds == {32, 64, 128, 256, 512}


def test_rows_are_given_in_order_and_given_again():
    schedule = Schedule(4, 1, 1024)
    requests = [request(f"r{i}", [i, 1, 2]) for i in range(7)]
    assert sorted(fill(schedule, requests)) == [0, 1, 2, 3]
    assert [schedule.rows[row].request.id for row in range(4)] == ["r0", "r1", "r2", "r3"]
    check_table(schedule)
    schedule.finish(2)
    assert fill(schedule, []) == [2]
    assert schedule.rows[2].request.id == "r4"
    assert schedule.waiting_count == 2
    check_table(schedule)


def test_groups_share_a_place_and_lists_are_seldom_empty():
    schedule = Schedule(16, 1, 1024)
    fill(schedule, [request(name, [at, 5], i) for at, name in enumerate("abc") for i in range(8)])
    assert schedule.rows_per_prompt == 8
    assert len(schedule.live()) == 16
    assert sum(r is not None and bool(r.users) for r in schedule.residents) == 2
    check_table(schedule)
    # One group among many single prompts: places for eight rows each would be mostly empty.
    mixed = Schedule(16, 1, 1024)
    singles = [request(f"s{i}", [9, i]) for i in range(12)]
    fill(mixed, [*(request("g", [1], i) for i in range(4)), *singles])
    assert mixed.rows_per_prompt == 1
    assert len(mixed.live()) == 16
    check_table(mixed)


@pytest.mark.parametrize("ways", [1, 2, 4])
def test_every_part_is_used_and_stays_apart(ways):
    schedule = Schedule(16, ways, 1024)
    fill(schedule, [request("g", [7, 7], i) for i in range(16)])
    assert len(schedule.live()) == 16  # a group larger than a part has a place in each
    check_table(schedule)
    for row in (0, 5, 15):
        schedule.finish(row)
    fill(schedule, [request(f"n{i}", [i]) for i in range(3)])
    check_table(schedule)


def test_common_heads_are_computed_once():
    schedule = Schedule(8, 1, 1024)
    root = list(range(40))
    prompts = [root + [50 + first] * 30 + [90 + i] * 20 for first in range(2) for i in range(3)]
    for at, ids in enumerate(prompts):
        schedule.add(request(f"r{at}", ids))
    schedule.resize_prompts(schedule.prompts_wanted(), 4096)
    real, sources = 0, []
    while schedule.admit() or (chunk := schedule.next_chunk()) is not None:
        real += chunk.real
        sources += [
            (int(s), int(t))
            for s, t in zip(chunk.source[0], chunk.target[0], strict=True)
            if t < len(schedule.residents)
        ]
        assert (chunk.start + chunk.tokens.shape[1] <= (chunk.limit or chunk.tokens.shape[1])).all()
    assert real == 40 + 2 * 30 + 6 * 20
    assert sum(source != target for source, target in sources) == 5
    assert all(resident.pins == 0 for resident in schedule.residents)


def test_the_donor_of_a_head_keeps_its_place_until_it_was_read():
    schedule = Schedule(2, 1, 1024)
    head = list(range(60))
    fill(schedule, [request("a", [*head, 1]), request("b", [*head, 2])])
    schedule.finish(0)
    schedule.finish(1)
    schedule.add(request("c", [*head, 3]))
    schedule.admit()
    pinned = [r.key[-1] for r in schedule.residents if r is not None and r.pins]
    assert len(pinned) == 1
    assert sorted(r.key[-1] for r in schedule.residents if r is not None) == sorted([3, *pinned])


def test_heads_are_not_shared_where_the_lengths_forbid_it():
    schedule = Schedule(4, 1, 1024, share_heads=lambda a, b: max(a, b) <= 64)
    head = list(range(60))
    for name, tail in (("short", [1]), ("also", [2]), ("long", [3] * 10)):
        schedule.add(request(name, head + tail))
    schedule.resize_prompts(schedule.prompts_wanted(), 4096)
    real = 0
    while schedule.admit() or (chunk := schedule.next_chunk()) is not None:
        real += chunk.real
    assert real == 61 + 1 + 70


def test_shrinking_keeps_what_lives():
    schedule = Schedule(16, 2, 1024)
    fill(schedule, [request(f"r{i}", [i, i]) for i in range(16)])
    kept = [3, 6, 9, 12]
    names = {schedule.rows[row].request.id for row in kept}
    for row in set(range(16)) - set(kept):
        schedule.finish(row)
    source = schedule.shrink_rows(2)
    assert source.shape == (2, 2)
    assert sorted(source.ravel().tolist()) == [1, 3, 4, 6]
    assert {work.request.id for work in schedule.rows} == names
    prompts = schedule.resize_prompts(schedule.drop_idle_prompts(), 4096)
    assert prompts.shape == (2, 2)
    check_table(schedule)


def test_decisions_are_a_function_of_the_requests():
    rng = np.random.default_rng(0)
    requests = [request(f"r{i}", rng.integers(0, 3, rng.integers(1, 90)).tolist(), i % 4) for i in range(60)]
    order = rng.permutation(1000)

    def played():
        schedule, seen = Schedule(8, 2, 1024), []
        waiting = iter(requests)
        for turn in order:
            while schedule.waiting_count < 8 and (each := next(waiting, None)):
                schedule.add(each)
            seen.append(fill(schedule, []) if schedule.waiting or schedule.residents else [])
            check_table(schedule)
            if live := schedule.live():
                schedule.finish(live[turn % len(live)])
            elif not schedule.waiting:
                return seen
        raise AssertionError("requests were left over")

    first = played()
    assert first == played()
    assert sum(map(len, first)) == 60


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(
    ("length", "prompts", "sizes"),
    [
        (20, 1, [1]), (20, 2, [4]), (20, 5, [4, 1]), (20, 11, [4, 4, 4]), (20, 12, [16]),
        (100, 2, [1, 1]), (100, 3, [4]), (100, 5, [4, 1]), (100, 6, [8]),
    ],
)  # fmt: skip
def test_chunks_have_few_sizes_and_large_ones_a_third_of_empty_places_at_most(length, prompts, sizes, coarse):
    schedule = Schedule(16, 1, 1024, coarse=coarse)
    for at in range(prompts):
        schedule.add(request(f"r{at}", [at, *range(length)]))
    schedule.resize_prompts(16, 128)
    schedule.admit()
    chunks = list(iter(schedule.next_chunk, None))
    assert [len(chunk.tokens) for chunk in chunks] == sizes
    assert len(schedule.start_rows()) == prompts


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("ways", [1, 2])
def test_what_a_place_is_said_to_hold_is_there(ways, coarse):
    """The chunks, carried out on lists of tokens as the devices would, many prompts with heads in common."""
    rng = np.random.default_rng(0)
    heads = [rng.integers(0, 50, size).tolist() for size in (20, 20, 60)]
    prompts = [heads[rng.integers(3)] + rng.integers(0, 50, rng.integers(1, 90)).tolist() for _ in range(40)]
    schedule = Schedule(8, ways, 256, coarse=coarse)
    waiting = [request(f"r{at}", prompts[rng.integers(40)], at) for at in range(300)]
    held: list[list[int]] = []
    while waiting or schedule.waiting or schedule.live():
        for _ in range(min(len(waiting), 8 - schedule.waiting_count)):
            schedule.add(waiting.pop())
        schedule.rows_per_prompt = schedule.group()
        per_part = schedule.prompts_wanted()
        if per_part * ways != len(schedule.residents):
            before = len(schedule.residents) // ways
            source = schedule.resize_prompts(per_part, 256)
            held = [held[part * before + at] if held else [] for part in range(ways) for at in source[part]]
        schedule.admit()
        while (chunk := schedule.next_chunk()) is not None:
            old, each, at = [list(tokens) for tokens in held], chunk.source.shape[1], 0
            for part in range(ways):
                for place in range(each):
                    target = int(chunk.target[part, place])
                    if target < per_part:
                        head = old[part * per_part + int(chunk.source[part, place])][: int(chunk.start[at])]
                        held[part * per_part + target] = head + chunk.tokens[at, : chunk.count[at]].tolist()
                    at += 1
            schedule.admit()
        for row in schedule.start_rows():
            check_table(schedule)
            key = schedule.rows[row].request.prompt_ids
            homes = [at for at, r in enumerate(schedule.residents) if r is not None and row in r.users]
            assert held[homes[0]] == list(key)
        for row in schedule.live():
            if rng.random() < 0.4:
                schedule.finish(row)
