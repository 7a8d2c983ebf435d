"""The data sets that `rrm data prepare` knows. A new one is a module with a `SOURCE`, and its name below."""

import importlib

from rrm_jax.data.sources.base import Source
from rrm_jax.errors import RrmError, did_you_mean

MODULES = (
    "big_math",
    "dapo_math",
    "generic",
    "gsm8k",
    "math_500",
    "skywork_or1",
    "skywork_reward",
    "tulu3_preferences",
    "tulu3_prompts",
    "webinstruct",
)


def sources() -> dict[str, Source]:
    """Every data set by its name."""
    modules = (importlib.import_module(f"{__name__}.{module}") for module in MODULES)
    return {module.SOURCE.name: module.SOURCE for module in modules}


def get_source(name: str) -> Source:
    """Raises RrmError, naming the nearest, where there is none of this name."""
    if name not in sources():
        near = did_you_mean(name, sources())
        raise RrmError(f"there is no data set {name!r}{near} (rrm data prepare --list says which there are)")
    return sources()[name]
