"""What the server counts, in the text form that Prometheus reads."""

import collections
import threading
from collections.abc import Iterable

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Upper ends of the latency histogram, seconds."""


class Metrics:
    """Requests by route and status, their latencies, and verdicts; gauges are given when the text is made."""

    def __init__(self):
        self._lock = threading.Lock()
        self._requests: collections.Counter[tuple[str, int]] = collections.Counter()
        self._latency: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._verdicts: collections.Counter[str] = collections.Counter()

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request that was answered with `status` after so long."""
        with self._lock:
            self._requests[route, status] += 1
            self._seconds[route] += seconds
            counts = self._latency.setdefault(route, [0] * (len(BUCKETS) + 1))
            counts[sum(seconds > end for end in BUCKETS)] += 1

    def verdicts(self, verdicts: Iterable[int | None]) -> None:
        """One for each vote; None is an invalid one."""
        with self._lock:
            self._verdicts.update("invalid" if verdict is None else str(verdict) for verdict in verdicts)

    def text(self, gauges: dict[str, float], counters: dict[str, float]) -> str:
        """With the gauges and counters of the engine, by their names without "rrm_"."""
        with self._lock:
            lines = ["# TYPE rrm_requests_total counter"]
            for (route, status), count in sorted(self._requests.items()):
                lines.append(f'rrm_requests_total{{route="{route}",status="{status}"}} {count}')
            lines.append("# TYPE rrm_request_seconds histogram")
            for route, counts in sorted(self._latency.items()):
                so_far = 0
                for end, count in zip((*BUCKETS, "+Inf"), counts, strict=True):
                    so_far += count
                    lines.append(f'rrm_request_seconds_bucket{{route="{route}",le="{end}"}} {so_far}')
                lines.append(f'rrm_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}')
                lines.append(f'rrm_request_seconds_count{{route="{route}"}} {so_far}')
            lines.append("# TYPE rrm_verdicts_total counter")
            for verdict in ("1", "2", "invalid"):
                lines.append(f'rrm_verdicts_total{{verdict="{verdict}"}} {self._verdicts[verdict]}')
        for kind, values in (("counter", counters), ("gauge", gauges)):
            for name, value in values.items():
                lines += [f"# TYPE rrm_{name} {kind}", f"rrm_{name} {value}"]
        return "\n".join(lines) + "\n"
