"""The decoder against transformers' PyTorch Qwen2, float32: committed outputs of `tests/fixtures/make_parity.py`.

The bound is on the largest |Δ| over the standard deviation of the logits. A 1e-3 slip in any part exceeds it.
"""

from pathlib import Path

import numpy as np
import pytest

from rrm_jax.models.config import from_hf
from tests.models import parity_cases

FIXTURES = Path(__file__).parent.parent / "fixtures" / "parity"


@pytest.mark.parametrize("name", parity_cases.CASES)
def test_equals_transformers(name):
    theirs, sums = parity_cases.read_outputs(FIXTURES / f"{name}.npz")
    ours_sums = parity_cases.weight_sums(from_hf(parity_cases.CASES[name]), seed=0)
    np.testing.assert_allclose(ours_sums, sums, rtol=1e-6, err_msg="other weights: write the fixtures anew")
    gap = parity_cases.compare(parity_cases.run(name), theirs)
    print(f"{name:26} full {gap.full:.1e} decode {gap.decode:.1e} greedy {'equal' if gap.greedy else 'DIFFERENT'}")
    assert gap.full <= parity_cases.BOUND
    assert gap.decode <= parity_cases.BOUND
    assert gap.greedy
