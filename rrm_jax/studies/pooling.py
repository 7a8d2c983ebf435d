"""One finding out of several seeds' findings of the same study."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from rrm_jax.errors import RrmError
from rrm_jax.evaluation.statistics import Interval, Paired, over_seeds, paired_over_seeds

_ADDS = object()
type Total = Annotated[int, _ADDS]
"""A count that adds up over seeds. Other whole numbers, such as a budget, belong to the setting: they must agree."""


def pool[T](found: Sequence[T], same_items: bool = False) -> T:
    """`same_items`: all seeds were asked about the same items, of which more seeds say no more (see `over_seeds`).

    Dataclasses, lists and mappings of the same shape, field by field. Intervals and paired tests become those over
    seeds; totals are added; other numbers are averaged; what is true of all is true. A class can have a way of its
    own, `pooled(many, same_items)`. RrmError where the findings are not of one shape, as with different settings."""
    return found[0] if len(found) == 1 else _pool("found", list(found), same_items)


def _pool(name: str, found: list[Any], same_items: bool) -> Any:
    first = found[0]
    if any(type(one) is not type(first) for one in found):
        raise RrmError(f"{name}: {found} cannot be pooled; were the seeds studied with the same settings?")
    if isinstance(first, Interval):
        return over_seeds(found, same_items)
    if isinstance(first, Paired):
        return paired_over_seeds(found, same_items)
    if hasattr(first, "pooled"):
        return type(first).pooled(found, same_items)
    if dataclasses.is_dataclass(first):
        return type(first)(
            **{field.name: _field(name, field, found, same_items) for field in dataclasses.fields(first)}
        )
    if isinstance(first, Mapping):
        _same(name, [list(one) for one in found])
        return {key: _pool(f"{name}.{key}", [one[key] for one in found], same_items) for key in first}
    if isinstance(first, list | tuple):
        _same(f"the length of {name}", [len(one) for one in found])
        return type(first)(
            _pool(f"{name}[{at}]", list(each), same_items) for at, each in enumerate(zip(*found, strict=True))
        )
    if isinstance(first, bool):
        return all(found)
    if isinstance(first, float):
        return sum(found) / len(found)
    return _same(name, found)


def _field(name: str, field: dataclasses.Field, found: list[Any], same_items: bool) -> Any:
    values = [getattr(one, field.name) for one in found]
    of = typing.get_type_hints(type(found[0]), include_extras=True)[field.name]
    return sum(values) if of is Total else _pool(f"{name}.{field.name}", values, same_items)


def _same(name: str, values: list[Any]) -> Any:
    if any(value != values[0] for value in values):
        raise RrmError(f"{name} differs from seed to seed: {values}; were they studied with the same settings?")
    return values[0]
