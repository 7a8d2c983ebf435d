"""What a win rate would be were both answers as long as each other.

As AlpacaEval's length-controlled win rate (2404.04475) without its term for the instruction, which needs the results of
many models: the score of item i is modelled as σ(θ + φ tanh(d_i / s)), where d is the difference in length and s its
standard deviation. At d = 0 the rate is σ(θ).

Axes: I items, B bootstrap samples.
"""

import numpy as np

RIDGE = 1e-4
"""Of θ² + φ², against a log-likelihood summed over items: nothing, but where the data would have them infinite."""

_STEPS, _AT_ONCE = 100, 4_000_000  # cells of samples worked on at once


def equal_length_rate(scores_I: np.ndarray, lengths_I: np.ndarray, times_BI: np.ndarray | None = None) -> np.ndarray:
    """σ(θ) [B], from 0 to 1; `scores_I` from 0 to 1. `times_BI`: how often each item is in a sample (None: one sample,
    of each item once)."""
    times_BI = np.ones((1, len(scores_I))) if times_BI is None else times_BI
    step = max(_AT_ONCE // max(len(scores_I), 1), 1)
    parts = [times_BI[at : at + step] for at in range(0, len(times_BI), step)]
    return np.concatenate([sigmoid(fit(scores_I, lengths_I, part)[:, 0]) for part in parts])


def fit(scores_I: np.ndarray, lengths_I: np.ndarray, times_BI: np.ndarray) -> np.ndarray:
    """(θ, φ) [B, 2] of the largest likelihood, by Newton steps; halved where one would overshoot."""
    spread = float(lengths_I.std(ddof=1)) if len(lengths_I) > 1 else 0.0
    x_I = np.tanh(lengths_I / spread) if spread else np.zeros(len(lengths_I))
    design_IK = np.stack([np.ones_like(x_I), x_I], axis=1)
    found_BK = np.zeros((len(times_BI), 2))
    value_B = _objective(found_BK, scores_I, design_IK, times_BI)
    for _ in range(_STEPS):
        rate_BI = sigmoid(found_BK @ design_IK.T)
        slope_BK = (times_BI * (scores_I - rate_BI)) @ design_IK - RIDGE * found_BK
        bend_BKK = np.einsum("bi,ik,il->bkl", times_BI * rate_BI * (1 - rate_BI), design_IK, design_IK)
        move_BK = np.linalg.solve(bend_BKK + RIDGE * np.eye(2), slope_BK[..., None])[..., 0]
        for _ in range(40):
            new_B = _objective(found_BK + move_BK, scores_I, design_IK, times_BI)
            worse_B = new_B < value_B - 1e-12
            if not worse_B.any():
                break
            move_BK[worse_B] /= 2
        found_BK, value_B = found_BK + move_BK, new_B
        if np.abs(move_BK).max(initial=0.0) < 1e-10:
            break
    return found_BK


def _objective(at_BK: np.ndarray, scores_I: np.ndarray, design_IK: np.ndarray, times_BI: np.ndarray) -> np.ndarray:
    """The log-likelihood, less the ridge."""
    logit_BI = at_BK @ design_IK.T
    each_BI = scores_I * logit_BI - np.logaddexp(0, logit_BI)
    return (times_BI * each_BI).sum(axis=1) - RIDGE / 2 * (at_BK**2).sum(axis=1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(−x)), without overflow for any x."""
    return np.exp(-np.logaddexp(0, -x))
