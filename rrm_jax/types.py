"""Shared type names."""

import jax
import numpy as np

type Array = jax.Array | np.ndarray
"""An array on the host or on devices: what a jitted function takes."""
