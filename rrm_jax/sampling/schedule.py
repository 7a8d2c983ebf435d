"""Who is where: which prompts are kept on the device, which request has which row, and what is prefilled next.

Host code alone, and a pure function of the requests and of which rows finished: every process of a multi-host run takes
the same decisions. The batch is in W parts, one for each group of devices that holds whole rows; a row and its prompt
are in the same part.
"""

import collections
import dataclasses
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from rrm_jax.sampling.buckets import bucket, chunk_size, coarse_bucket
from rrm_jax.sampling.protocol import Request

Key = tuple[int, ...]

_LEAST_SHARED = 16  # a shorter common head costs more to look after than to compute
_LOOKED_AT = 64  # prompts in the queue, when one is chosen
_SMALL_CHUNK = 256  # tokens, of which empty ones cost less than another pass over the weights


@dataclasses.dataclass(eq=False)
class Work:
    """A request in a row, and what it has drawn."""

    request: Request
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    model_logprobs: list[float] = dataclasses.field(default_factory=list)
    done: bool = False


@dataclasses.dataclass(eq=False)
class Resident:
    """A prompt kept on the device: `filled` columns are computed; `donor` is where it takes its first ones from."""

    key: Key
    ids: np.ndarray
    order: int
    filled: int = 0
    donor: int | None = None
    pins: int = 0
    users: set[int] = dataclasses.field(default_factory=set)
    used: int = 0

    @property
    def ready(self) -> bool:
        """Whether rows may start from it: all its columns are computed."""
        return self.filled == len(self.ids)


class Chunk(NamedTuple):
    """Arguments of `engine.prefill`, and how many of its tokens are real."""

    tokens: np.ndarray
    source: np.ndarray
    target: np.ndarray
    start: np.ndarray
    count: np.ndarray
    total: np.ndarray
    limit: int
    real: int


class Schedule:
    """`share_heads(a, b)` says whether prompts of these lengths may share the keys and values of a common head.

    So that little is compiled, the numbers of prompts that are prefilled together are powers of four. `coarse`, so that
    what anybody may ask for at any time has even fewer shapes: there are as many places for prompts as rows, the
    numbers of rows for one are powers of four, and what later chunks attend to are powers of two.
    """

    def __init__(self, batch: int, ways: int, prefill_tokens: int, share_heads=lambda a, b: True, coarse: bool = False):
        self.ways, self.prefill_tokens, self._share_heads, self._coarse = ways, prefill_tokens, share_heads, coarse
        self.rows: list[Work | None] = [None] * batch
        self.residents: list[Resident | None] = []
        self.waiting: dict[Key, collections.deque[Request]] = {}
        self.waiting_count = 0
        self.rows_per_prompt = 1
        self._clock = 0

    # Requests

    def add(self, request: Request) -> None:
        """At the end of the queue of its prompt."""
        self.waiting.setdefault(request.prompt_ids, collections.deque()).append(request)
        self.waiting_count += 1

    def live(self) -> list[int]:
        """Rows at work."""
        return [at for at, work in enumerate(self.rows) if work is not None]

    def finish(self, row: int) -> None:
        """Frees a row."""
        self.rows[row] = None
        for resident in self.residents:
            if resident is not None:
                resident.users.discard(row)

    def start_rows(self) -> list[int]:
        """Gives free rows to waiting requests whose prompts are ready; returns those rows."""
        started: list[int] = []
        if not self.waiting or None not in self.rows:
            return started
        homes = self._homes()
        for key in list(self.waiting):
            for at, resident in (home for home in homes.get(key, ()) if home[1].ready):
                free = self._free_rows(self._part_of_prompt(at))
                while key in self.waiting and len(resident.users) < self.rows_per_prompt and free:
                    row = free.pop(0)
                    self.rows[row] = Work(self._take(key))
                    resident.users.add(row)
                    resident.used = self._tick()
                    started.append(row)
        return started

    def _take(self, key: Key) -> Request:
        request = self.waiting[key].popleft()
        self.waiting_count -= 1
        if not self.waiting[key]:
            del self.waiting[key]
        return request

    def withdraw(self, unwanted: Collection[int]) -> None:
        """Takes requests, by their `id()`, out of the queue."""
        for key, requests in list(self.waiting.items()):
            kept = collections.deque(request for request in requests if id(request) not in unwanted)
            self.waiting_count -= len(requests) - len(kept)
            if kept:
                self.waiting[key] = kept
            else:
                del self.waiting[key]

    def _homes(self) -> dict[Key, list[tuple[int, Resident]]]:
        """Where each prompt is. They are long and begin alike: each is hashed once, not compared with the others."""
        homes: dict[Key, list[tuple[int, Resident]]] = {}
        for at, resident in enumerate(self.residents):
            if resident is not None:
                homes.setdefault(resident.key, []).append((at, resident))
        return homes

    # Parts of the batch

    def _rows_of(self, part: int) -> range:
        size = len(self.rows) // self.ways
        return range(part * size, (part + 1) * size)

    def _prompts_of(self, part: int) -> range:
        size = len(self.residents) // self.ways
        return range(part * size, (part + 1) * size)

    def _part_of_prompt(self, at: int) -> int:
        return at // (len(self.residents) // self.ways)

    def _free_rows(self, part: int) -> list[int]:
        return [row for row in self._rows_of(part) if self.rows[row] is None]

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    # Shapes

    def group(self) -> int:
        """How many rows a prompt's list should have: as many as use it, unless that would mean mostly empty places; no
        fewer than it needs, or had."""
        wanted = collections.Counter({key: len(requests) for key, requests in self.waiting.items()})
        for resident in self.residents:
            if resident is not None and resident.users:
                wanted[resident.key] += len(resident.users)
        most, total, best = len(self.rows) // self.ways, sum(wanted.values()), 1
        ratio = size = 4 if self._coarse else 2
        while size <= most and 2 * size * sum(-(-count // size) for count in wanted.values()) <= 3 * total:
            best, size = size, ratio * size
        # Where anybody may ask at any time, a large group of the past is no reason to make room for large groups.
        used = max((len(resident.users) for resident in self.residents if resident is not None), default=1)
        return max(best, coarse_bucket(used, ratio=4) if self._coarse else self.rows_per_prompt)

    def prompts_wanted(self) -> int:
        """How many prompts a part should have room for: what is needed first, and a step more where rows lie idle."""
        have = len(self.residents) // self.ways
        most = len(self.rows) // self.ways
        if self._coarse:
            return most
        if not self.residents:
            distinct = -(-len(self.waiting) // self.ways)
            per_prompt = -(-most // self.rows_per_prompt)
            return min(bucket(max(1, min(distinct, per_prompt)), 1), most)
        starved = self.waiting_count and any(
            self._free_rows(part) and self._vacancy(part) is None and self._part_is_settled(part)
            for part in range(self.ways)
        )
        return min(bucket(have + 1, 1), most) if starved and have < most else have

    def _part_is_settled(self, part: int) -> bool:
        return all(r is not None and r.ready for r in (self.residents[at] for at in self._prompts_of(part)))

    def longest_prompt(self) -> int:
        """Columns that the prompts in use, in work or first in the queue need."""
        kept = [len(r.ids) for r in self.residents if r is not None and (r.users or r.pins or not r.ready)]
        return max(kept, default=0)

    def resize_prompts(self, per_part: int, columns: int) -> np.ndarray:
        """Makes room for so many prompts a part, of so many tokens: the old place of each, int32 [W, per part], by the
        part.

        Prompts in use come first; those that find no place, and idle ones that are longer, are dropped.
        """
        source = np.zeros((self.ways, per_part), np.int32)
        residents: list[Resident | None] = []
        for part in range(self.ways):
            old = self._prompts_of(part) if self.residents else range(0)
            kept = [at for at in old if (resident := self.residents[at]) is not None and len(resident.ids) <= columns]
            kept.sort(key=lambda at: (not self._held(at), -self._at(at).used))
            kept = kept[:per_part]
            moved = {at: part * per_part + place for place, at in enumerate(kept)}
            for place, at in enumerate(kept):
                source[part, place] = at - old.start
                resident = self._at(at)
                resident.donor = None if resident.donor is None else moved[resident.donor]
                residents.append(resident)
            residents += [None] * (per_part - len(kept))
        self.residents = residents
        return source

    def drop_idle_prompts(self) -> int:
        """For the end of a job: how many prompts a part still needs."""
        return max(1, max(sum(self._held(at) for at in self._prompts_of(part)) for part in range(self.ways)))

    def _at(self, at: int) -> Resident:
        resident = self.residents[at]
        assert resident is not None
        return resident

    def _held(self, at: int) -> bool:
        resident = self.residents[at]
        if resident is None:
            return False
        return bool(resident.users or resident.pins or not resident.ready or resident.key in self.waiting)

    def shrink_rows(self, per_part: int) -> np.ndarray:
        """Leaves so many rows a part, the live ones among them: the old place of each, int32 [W, per part]."""
        source = np.zeros((self.ways, per_part), np.int32)
        rows: list[Work | None] = []
        moved = {}
        for part in range(self.ways):
            old = self._rows_of(part)
            order = sorted(old, key=lambda row: self.rows[row] is None)[:per_part]
            for place, row in enumerate(order):
                source[part, place] = row - old.start
                moved[row] = part * per_part + place
                rows.append(self.rows[row])
        self.rows = rows
        self.rows_per_prompt = min(self.rows_per_prompt, per_part)
        for resident in self.residents:
            if resident is not None:
                resident.users = {moved[row] for row in resident.users}
        return source

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`cache.Prefix`'s length [U] (0 where no row reads), rows [W, U/W, R] and place [W, B/W]."""
        prompts, batch, group = len(self.residents) // self.ways, len(self.rows) // self.ways, self.rows_per_prompt
        length = np.array([r.filled if r is not None and r.users else 0 for r in self.residents], np.int32)
        rows = np.zeros((self.ways, prompts, group), np.int32)
        place = np.zeros((self.ways, batch), np.int32)
        for at, resident in enumerate(self.residents):
            if resident is None:
                continue
            part, prompt = divmod(at, prompts)
            for number, row in enumerate(sorted(resident.users)):
                rows[part, prompt, number] = row - part * batch
                place[part, row - part * batch] = prompt * group + number
        return length, rows, place

    # Prefill

    def admit(self) -> None:
        """Gives places to prompts that wait for one, and says where each takes its head from.

        A prompt whose head is just being computed for another waits for it.
        """
        everywhere = self._homes()  # who makes room below has nobody waiting for it
        for key in list(self.waiting)[:_LOOKED_AT]:
            homes = everywhere.get(key, [])
            if homes and not self._stranded(homes):
                continue  # its own place will serve it when rows come free
            part = self._part_for(homes)
            if part is None:
                return
            ids = np.asarray(key, np.int32)
            donor, shared = self._donor(part, ids)
            if donor is not None and (self._at(donor).filled < shared or self._at(donor).donor is not None):
                continue  # not there yet, or counted as its own before it has been copied
            place = self._vacancy(part, keep=donor)
            if place is None:
                continue
            resident = Resident(key, ids, self._tick())
            if donor is not None:
                resident.filled, resident.donor = shared, donor
                self._at(donor).pins += 1
            resident.used = self._clock
            self.residents[place] = resident

    def _stranded(self, homes: list[tuple[int, Resident]]) -> bool:
        """Whether rows lie free that none of a prompt's places can serve."""
        able = {self._part_of_prompt(at) for at, r in homes if not r.ready or len(r.users) < self.rows_per_prompt}
        return any(self._free_rows(part) and part not in able for part in range(self.ways)) and bool(homes)

    def _part_for(self, homes: list[tuple[int, Resident]]) -> int | None:
        """The part with most free rows that no prompt on its way has claimed."""
        able = {self._part_of_prompt(at) for at, r in homes if not r.ready or len(r.users) < self.rows_per_prompt}
        room = {}
        for part in range(self.ways):
            if part in able or self._vacancy(part) is None:
                continue
            coming = sum(
                min(self.rows_per_prompt, len(self.waiting.get(r.key, ())))
                for r in (self.residents[at] for at in self._prompts_of(part))
                if r is not None and not r.users
            )
            room[part] = len(self._free_rows(part)) - coming
        return max(room, key=lambda part: (room[part], -part)) if room else None

    def _vacancy(self, part: int, keep: int | None = None) -> int | None:
        """An empty place, or that of the prompt which has been idle longest."""
        places = [at for at in self._prompts_of(part) if at != keep and not self._held(at)]
        return min(places, key=lambda at: -1 if self.residents[at] is None else self._at(at).used, default=None)

    def _donor(self, part: int, ids: np.ndarray) -> tuple[int | None, int]:
        """The prompt with the longest common head, computed or not, and how long that is."""
        best, shared = None, _LEAST_SHARED - 1
        for at in self._prompts_of(part):
            resident = self.residents[at]
            if resident is None or not self._share_heads(len(ids), len(resident.ids)):
                continue
            size = min(len(ids) - 1, len(resident.ids))
            if size <= shared:
                continue
            differ = ids[:size] != resident.ids[:size]
            common = int(np.argmax(differ)) if differ.any() else size
            if common > shared:
                best, shared = at, common
        return best, (shared if best is not None else 0)

    def prefilling(self) -> bool:
        """Whether any prompt on the device still has columns to compute."""
        return any(resident is not None and not resident.ready for resident in self.residents)

    def next_chunk(self) -> Chunk | None:
        """What to prefill next: the oldest unfinished prompt, and others that need as much of the same kind."""
        work = [(r.order, at) for at, r in enumerate(self.residents) if r is not None and not r.ready]
        if not work:
            return None
        columns, later = self._kind(min(work)[1])
        most = max(1, self.prefill_tokens // columns)
        chosen: list[list[int]] = [[] for _ in range(self.ways)]
        for _, at in sorted(work):
            part = chosen[self._part_of_prompt(at)]
            if self._kind(at) == (columns, later) and len(part) < most:
                part.append(at)
        holds = coarse_bucket(wanted := max(map(len, chosen)), ratio=4)
        each = min(holds, most)
        if each * columns > _SMALL_CHUNK and 4 * wanted < 3 * each:  # rather the others next than a third of it empty
            each = holds // 4
            chosen = [part[:each] for part in chosen]
        return self._chunk(chosen, each, columns, later)

    def _kind(self, at: int) -> tuple[int, bool]:
        resident = self._at(at)
        return chunk_size(len(resident.ids) - resident.filled), resident.filled > 0

    def _chunk(self, chosen: list[list[int]], each: int, columns: int, later: bool) -> Chunk:
        shape = (self.ways, each)
        per_part = len(self.residents) // self.ways
        tokens = np.zeros((*shape, columns), np.int32)
        source, start = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        target = np.full(shape, per_part, np.int32)
        count, total = np.ones(shape, np.int32), np.ones(shape, np.int32)
        end = real = 0
        for part, places in enumerate(chosen):
            for number, at in enumerate(places):
                resident = self._at(at)
                size = min(columns, len(resident.ids) - resident.filled)
                tokens[part, number, :size] = resident.ids[resident.filled : resident.filled + size]
                origin = at if resident.donor is None else resident.donor
                source[part, number], target[part, number] = origin % per_part, at % per_part
                start[part, number], count[part, number], total[part, number] = resident.filled, size, len(resident.ids)
                end = max(end, resident.filled + columns)
                if resident.donor is not None:
                    self._at(resident.donor).pins -= 1
                    resident.donor = None
                resident.filled += size
                real += size
        limit = 0 if not later else coarse_bucket(end, 128) if self._coarse else bucket(end, 128)
        return Chunk(
            tokens.reshape(-1, columns), source, target, start.ravel(), count.ravel(), total.ravel(), limit, real
        )
