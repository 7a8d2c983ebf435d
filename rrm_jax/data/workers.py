"""Work on numbered items ahead of their use, in processes beside this one; results come in order, however many work."""

import contextlib
import dataclasses
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_AHEAD = 16  # results that each process keeps ready: a few steps' worth, a few hundred kilobytes


@contextlib.contextmanager
def in_order[T](
    compute: Callable[[int], T], workers: int, start: int = 0, stop: int | None = None
) -> Iterator[Iterator[T]]:
    """An iterator over compute(start), compute(start + 1), … computed by `workers` processes (0: here, when asked).

    `compute` is sent to the processes once, so it must be picklable and light to import. They end with the `with`, and
    with this process however it ends.
    """
    indices = range(start, sys.maxsize if stop is None else stop)
    if workers == 0 or not indices:
        yield map(compute, indices)
        return
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads flags of its own, which a program without absl's main never sets
        flags.FLAGS.mark_as_parsed()
    items = grain.MapDataset.range(indices.start, indices.stop).map(_WithParent(compute))
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
    # Threads within a process would only wait for one another.
    reading = items.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    iterator = iter(reading.mp_prefetch(options))
    try:
        yield iterator
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _WithParent[T]:
    """`compute`; where it arrives in another process, that process ends with its parent, even with a killed one."""

    compute: Callable[[int], T]

    def __call__(self, index: int) -> T:
        return self.compute(index)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        parent = multiprocessing.parent_process()
        if parent is not None:
            # Of a terminal's Ctrl-C, or a signal to the whole group, the parent decides: it may have work to save.
            with contextlib.suppress(ValueError):  # not in a process's main thread
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
