"""Where a run's time goes: a trace of some steps, and what compiling took."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax import monitoring

_TRACED, _LOWERED = "/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED, _HIT = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"


class Trace:
    """Writes what devices and host do in `steps` (the first and the last; None: never) below `directory`, for XProf,
    TensorBoard and Perfetto. Each process writes its own files."""

    def __init__(self, directory: Path, steps: tuple[int, int] | None):
        self._directory, self._steps, self._running = directory, steps, False

    def begin(self, step: int) -> None:
        """A run that goes on in the middle of `steps` traces the rest of them."""
        if self._steps is not None and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True

    def end(self, step: int) -> bool:
        """Whether the trace is complete now."""
        if not self._running or self._steps is None or step < self._steps[1]:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Ends a trace that is going on, so that it can be read; steps that come later are not traced."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


@dataclasses.dataclass
class Compilations:
    """Of this process since `listen`: how many programs were compiled, or read from the cache of compiled programs, and
    the seconds that tracing, lowering and compiling took (reading from the cache counts as compiling). Threads that
    compile at once have their seconds added."""

    programs: int = 0
    cached: int = 0
    tracing: float = 0.0
    compiling: float = 0.0

    def listen(self) -> None:
        """Counts from here on; `close` ends it."""
        monitoring.register_event_duration_secs_listener(self._took)
        monitoring.register_event_listener(self._happened)

    def close(self) -> None:
        """Stops counting; the counts stay."""
        monitoring.unregister_event_duration_listener(self._took)
        monitoring.unregister_event_listener(self._happened)

    def _took(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            self.programs += 1
            self.compiling += duration_secs
        elif event in (_TRACED, _LOWERED):
            self.tracing += duration_secs

    def _happened(self, event: str, **_: Any) -> None:
        self.cached += event == _HIT

    def __str__(self) -> str:
        return (
            f"{self.programs} programs compiled in {self.compiling:.1f} s, {self.cached} of them read from the cache; "
            f"traced in {self.tracing:.1f} s"
        )
