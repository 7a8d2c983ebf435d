"""Replays: where a curve is looked at, and how sure its points are."""

import numpy as np
import pytest
from scipy.stats import binomtest

from rrm_jax.evaluation.replay_sources import simulated_parts
from rrm_jax.ranking.entry import parse_entry
from rrm_jax.ranking.field import field_of
from rrm_jax.ranking.protocol import Item
from rrm_jax.ranking.replay import Part, Point, replay
from rrm_jax.ranking.simulator import Simulator, ask_simulator, draw_world

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.parametrize(("right", "count"), [(5, 10), (0, 10), (37, 40)])
def test_half_a_width_is_wilsons(right, count):
    """Against SciPy's interval, whose z has more digits."""
    known = binomtest(right, count).proportion_ci(method="wilson")
    assert Point(0.0, right, count).half_width == pytest.approx((known.high - known.low) / 2, abs=1e-4)


def test_a_curve_is_looked_at_where_a_dozen_steps_of_equal_ratio_fall():
    """By hand: 1 × 8^(k/11) for k = 0 … 11, rounded, are rounds 1, 2, 3, 4, 5, 7 and 8, of 4 comparisons each."""
    entry = parse_entry("swiss:rounds=8")
    (curve,) = replay([entry], simulated_parts(8, Simulator(2.0), 20, 0))
    assert [point.comparisons for point in curve.points] == [4, 8, 12, 16, 20, 28, 32]
    (last,) = replay([entry], simulated_parts(8, Simulator(2.0), 20, 0), curve=False)
    assert [point.comparisons for point in last.points] == [32]


@pytest.mark.parametrize("text", ["swiss", "adaptive", "swiss:rounds=6:stop=0.5"])
def test_tournaments_that_are_over_sooner_are_in_every_look(text):
    """Of 4 and of 16 candidates, which take more rounds; and the end is not shown twice."""
    entry = parse_entry(text)

    def parts():
        for size in (4, 16):  # which come in arrays of one shape
            field = field_of([Item(f"{size} {at}", size) for at in range(10)], 0)
            world = draw_world(field, 16)
            strongest = np.argmax(np.asarray(world.strength), axis=1)
            right = np.arange(16) == strongest[:, None]
            yield Part(field, 16, right, lambda votes, world=world: ask_simulator(Simulator(8.0), world))

    (curve,) = replay([entry], parts)
    assert {point.tournaments for point in curve.points} == {20}
    compared = [point.comparisons for point in curve.points]
    assert compared == sorted(set(compared))
    assert len(compared) > 2
