"""Reward Reasoning Models in JAX (arXiv 2505.14674): judge, rank, and train on verdicts alone.

`open_judge`, `rank` and `Pair` are here for those who only use a judge; all else is in its room (docs/architecture.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rrm_jax.api import open_judge
    from rrm_jax.data.records import Pair
    from rrm_jax.evaluation.tournament import rank

__version__ = "0.1.0"
__all__ = ["Pair", "open_judge", "rank"]

_PLACES = {"open_judge": "rrm_jax.api", "rank": "rrm_jax.evaluation.tournament", "Pair": "rrm_jax.data.records"}


def __getattr__(name: str) -> Any:
    """Imported when they are asked for, so that `import rrm_jax`, and with it every command, begins at once."""
    import importlib

    if name not in _PLACES:
        raise AttributeError(f"module 'rrm_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
