"""What is chosen by name and declared in a module of its own: one line of a registry, imported when it is asked for."""

import importlib
from collections.abc import Mapping
from typing import Any

from rrm_jax.errors import RrmError, did_you_mean


def find(places: Mapping[str, str], name: str, what: str) -> Any:
    """The object at `places[name]`, a "module:attribute". Raises RrmError, naming the nearest, for an unknown name."""
    if name not in places:
        raise RrmError(f"{what} {name!r} is not one of {', '.join(places)}{did_you_mean(name, places)}")
    module, _, attribute = places[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
