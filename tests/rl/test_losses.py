"""The policy loss against float64 calculations written from the papers' formulas, response by response."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrm_jax.rl.advantages import group_advantages
from rrm_jax.rl.losses import (
    PolicyBatch,
    PolicyLoss,
    kl_estimate,
    policy_loss,
    response_mean,
    supervised_loss,
    token_weights,
)
from rrm_jax.rl.rewards import consistency_reward, overlong_penalty, verdict_reward
from rrm_jax.rl.surrogates import Clip, clipped_ratio, clipped_weight

LIMIT = 9
GRPO = PolicyLoss(kl_coef=0.05)
VARIANTS = {
    "grpo": (GRPO, "sequence"),
    "grpo without kl": (PolicyLoss(), "sequence"),
    "grpo, k2": (dataclasses.replace(GRPO, kl_estimator="k2"), "sequence"),
    "dr_grpo": (PolicyLoss(kl_coef=0.05), "constant"),
    "dapo": (PolicyLoss(clip_high=0.28), "token"),
    "gspo": (PolicyLoss(ratio="sequence", clip_low=0.05, clip_high=0.08), "sequence"),
    "entropy bonus": (PolicyLoss(entropy_coef=0.1), "token"),
    "truncated importance": (PolicyLoss(importance_cap=1.1), "sequence"),
    "cispo": (PolicyLoss(clip_low=0.3, clip_high=0.2, surrogate=clipped_weight), "token"),
    "everything": (PolicyLoss("sequence", 0.1, 0.2, 0.05, "k2", 0.1, 1.2), "constant"),
}


@dataclasses.dataclass
class Response:
    """One response's numbers, float64, one for each of its tokens (but the advantage). `held`: the log-probabilities of
    weights that no gradient goes through; None: its own."""

    advantage: float
    logprob: np.ndarray
    entropy: np.ndarray
    old: np.ndarray
    reference: np.ndarray
    sampler: np.ndarray
    held: np.ndarray | None = None


def responses(seed: int = 0, count: int = 7) -> list[Response]:
    """Of uneven lengths, with ratios on both sides of every clip, and importance on both sides of every cap."""
    rng = np.random.default_rng(seed)
    made = []
    for length in rng.integers(1, LIMIT + 1, count):
        logprob = -rng.exponential(1.0, length)
        old = logprob + rng.normal(rng.normal(0, 0.2), 0.3, length)
        reference, sampler = logprob + rng.normal(0, 0.5, length), old + rng.normal(0, 0.3, length)
        made.append(Response(rng.normal(), logprob, rng.exponential(1.0, length), old, reference, sampler))
    return made


def by_the_formulas(how: PolicyLoss, aggregation: str, given: list[Response]) -> float:
    """The mean loss of a batch of responses."""
    total = 0.0
    for one in given:
        length = len(one.logprob)
        sequence_ratio = np.exp(np.mean(one.logprob - one.old))  # 2507.18071, eq. 7
        loss = 0.0
        for t in range(length):
            ratio = sequence_ratio if how.ratio == "sequence" else np.exp(one.logprob[t] - one.old[t])
            clipped = min(max(ratio, 1 - how.clip_low), 1 + how.clip_high)
            term = -min(ratio * one.advantage, clipped * one.advantage)
            if how.surrogate is clipped_weight:  # 2506.13585, eq. 4 and 5
                held = one.logprob if one.held is None else one.held
                weight = min(max(np.exp(held[t] - one.old[t]), 1 - how.clip_low), 1 + how.clip_high)
                term = -weight * one.advantage * one.logprob[t]
            if how.importance_cap is not None:
                term *= min(np.exp(one.old[t] - one.sampler[t]), how.importance_cap)
            d = one.reference[t] - one.logprob[t]
            kl = {"k1": -d, "k2": d * d / 2, "k3": np.exp(d) - d - 1}[how.kl_estimator]
            loss += term + how.kl_coef * kl - how.entropy_coef * one.entropy[t]
        total += {"sequence": loss / length, "token": loss, "constant": loss / LIMIT}[aggregation]
    tokens = sum(len(one.logprob) for one in given)
    return total / (tokens if aggregation == "token" else len(given))


def packed(given: list[Response], aggregation: str, rows: list[list[int]], width: int):
    """Log-probabilities [B, C], entropies, PolicyBatch and denominator of responses laid out in rows."""
    lengths = [len(one.logprob) for one in given]
    weights, denominator = token_weights(np.array(lengths), aggregation, LIMIT)
    fields = {name: np.full((len(rows), width), 7.0) for name in ("logprob", "entropy", "old", "reference", "sampler")}
    advantage, weight, mask = np.zeros((3, len(rows), width))
    response = np.zeros((len(rows), width), np.int32)
    for b, row in enumerate(rows):
        at = 0
        for number, index in enumerate(row):
            own = slice(at, at + len(given[index].logprob))
            for name, field in fields.items():
                field[b, own] = getattr(given[index], name)
            advantage[b, own], weight[b, own], mask[b, own] = given[index].advantage, weights[index], 1
            response[b, own], at = number, own.stop
    batch = PolicyBatch(advantage, weight, response, fields["old"], fields["reference"], fields["sampler"], mask)
    return fields["logprob"], fields["entropy"], batch, denominator


LAYOUTS = {
    "one a row": ([[at] for at in range(7)], LIMIT),
    "padding rows": ([[0], [1], [2], [], [3], [4], [5], [6], []], LIMIT + 3),
    "packed": ([[0, 3, 5], [1, 2, 6, 4], []], 4 * LIMIT),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_equals_the_formula(variant, layout):
    """float64: 1e-12; float32: 1e-5 of the largest response's loss, which others cancel in part."""
    how, aggregation = VARIANTS[variant]
    given = responses()
    expected = by_the_formulas(how, aggregation, given)
    logprob, entropy, batch, denominator = packed(given, aggregation, *LAYOUTS[layout])
    with jax.enable_x64(True):
        total, sums = policy_loss(how, jnp.asarray(logprob), jnp.asarray(entropy), batch)
        np.testing.assert_allclose(float(total) / denominator, expected, rtol=1e-12)
        assert float(sums["tokens"]) == sum(len(one.logprob) for one in given)
    single = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), x) for x in (logprob, entropy, batch)]
    total, _ = policy_loss(how, single[0], single[1], single[2]._replace(response=jnp.asarray(batch.response)))
    largest = max(abs(by_the_formulas(how, "sequence", [one])) for one in given)
    np.testing.assert_allclose(float(total) / denominator, expected, rtol=1e-5, atol=1e-5 * largest / len(given))


@pytest.mark.parametrize("variant", ["grpo", "dapo", "cispo"])
def test_tokens_at_a_bound_are_counted(variant):
    """GRPO's clip is at work where the advantage pushes beyond the bound (1707.06347, fig. 1), CISPO's anyway."""
    how, aggregation = VARIANTS[variant]
    given = responses(count=20)
    logprob, entropy, batch, _ = packed(given, aggregation, [[at] for at in range(20)], LIMIT)
    with jax.enable_x64(True):
        _, sums = policy_loss(how, jnp.asarray(logprob), jnp.asarray(entropy), batch)
    either = variant == "cispo"
    ratios = [(np.exp(one.logprob - one.old), one.advantage) for one in given]
    low = sum(np.sum(ratio < 1 - how.clip_low) for ratio, advantage in ratios if either or advantage < 0)
    high = sum(np.sum(ratio > 1 + how.clip_high) for ratio, advantage in ratios if either or advantage > 0)
    assert low > 0
    assert high > 0
    assert (int(sums["clip_low"]), int(sums["clip_high"])) == (low, high)


@pytest.mark.parametrize("surrogate", [clipped_ratio, clipped_weight])
def test_a_ratio_at_its_bound_is_not_past_it(surrogate):
    """Of bounds that float32 holds exactly: 0.75 and 1.25."""
    ratio = jnp.asarray([[0.75, 1.25, 0.74, 1.26]])
    clip = Clip(0.25, 0.25)
    lost = surrogate(ratio, jnp.full((1, 4), -1.0), jnp.zeros((1, 4)), clip)
    won = surrogate(ratio, jnp.full((1, 4), 1.0), jnp.zeros((1, 4)), clip)
    assert lost.low[0].tolist() == [False, False, True, False]
    assert won.high[0].tolist() == [False, False, False, True]
    level = clipped_ratio(ratio, jnp.zeros((1, 4)), jnp.zeros((1, 4)), clip)
    assert not (level.low | level.high).any(), "where nothing is to be gained nothing is held back"


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_equals_finite_differences_of_the_formula(variant):
    """By log-probabilities and entropies; float64, 1e-6. What the formula holds fixed carries no gradient."""
    how, aggregation = VARIANTS[variant]
    given = responses(3)
    logprob, entropy, batch, denominator = packed(given, aggregation, *LAYOUTS["packed"])
    with jax.enable_x64(True):
        by_logprob, by_entropy = jax.grad(lambda x, h: policy_loss(how, x, h, batch)[0] / denominator, (0, 1))(
            jnp.asarray(logprob), jnp.asarray(entropy)
        )
    by_logprob, by_entropy = np.asarray(by_logprob), np.asarray(by_entropy)
    assert np.all(by_logprob[batch.mask == 0] == 0)
    for b, row in enumerate(LAYOUTS["packed"][0]):
        at = 0
        for index in row:
            for t in range(len(given[index].logprob)):
                for name, found in (("logprob", by_logprob), ("entropy", by_entropy)):
                    slope = _slope(how, aggregation, given, index, name, t)
                    np.testing.assert_allclose(found[b, at], slope, atol=1e-7, rtol=1e-5)
                at += 1


def _slope(how, aggregation, given, index, name, t, step=1e-6):
    ends = []
    for sign in (1, -1):
        moved = [dataclasses.replace(one) for one in given]
        values = getattr(given[index], name).copy()
        values[t] += sign * step
        moved[index] = dataclasses.replace(given[index], held=given[index].logprob, **{name: values})
        ends.append(by_the_formulas(how, aggregation, moved))
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("variant", ["grpo", "dapo", "gspo", "dr_grpo"])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_add_up_to_the_whole(variant, parts):
    """A batch split over micro-batches, each divided by the whole batch's denominator, float64."""
    how, aggregation = VARIANTS[variant]
    given = responses(5)
    expected, total = by_the_formulas(how, aggregation, given), 0.0
    for members in np.array_split(np.arange(len(given)), parts):
        rows = [[int(at)] for at in members]
        logprob, entropy, batch, denominator = packed(given, aggregation, rows, LIMIT)
        with jax.enable_x64(True):
            total += float(policy_loss(how, jnp.asarray(logprob), jnp.asarray(entropy), batch)[0]) / denominator
    np.testing.assert_allclose(total, expected, rtol=1e-12)


def test_clip_stops_the_gradient_and_is_counted():
    # A stored old log-probability is what makes the clip act: with ratios of 1 it never would.
    old, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    logprob = np.array([[0.5, 0.0, -0.5], [0.5, 0.0, -0.5]], np.float32)
    batch = PolicyBatch(ones * [[1.0], [-1.0]], ones, np.zeros((2, 3), np.int32), old, None, old, ones)
    gradient = jax.grad(lambda x: policy_loss(PolicyLoss(), x, ones, batch)[0])(logprob)
    assert gradient[0, 0] == 0
    assert gradient[1, 2] == 0
    assert np.all(np.asarray(gradient)[[0, 0, 1, 1], [1, 2, 0, 1]] != 0)
    _, sums = policy_loss(PolicyLoss(), jnp.asarray(logprob), ones, batch)
    assert (float(sums["clip_high"]), float(sums["clip_low"]), float(sums["tokens"])) == (1.0, 1.0, 6.0)
    # Clip-higher lets the upper one through (2503.14476, §3.1): e^0.5 = 1.65.
    higher = PolicyLoss(clip_high=0.7)
    assert jax.grad(lambda x: policy_loss(higher, x, ones, batch)[0])(logprob)[0, 0] != 0


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_without_old_logprobs_the_gradient_is_the_policy_gradient(ratio):
    """−A / length for every token: at a ratio of 1 both ratios have it (2507.18071, eq. 10), float64."""
    given = responses(3)
    logprob, entropy, batch, _ = packed(given, "sequence", *LAYOUTS["packed"])
    on_policy = batch._replace(old_logprob=None, reference_logprob=None)
    with jax.enable_x64(True):
        loss = lambda x: policy_loss(PolicyLoss(ratio=ratio), x, jnp.asarray(entropy), on_policy)[0]  # noqa: E731
        found = jax.grad(loss)(jnp.asarray(logprob))
    np.testing.assert_allclose(found, -batch.advantage * batch.weight, rtol=1e-12)


def test_mismatch_and_importance_are_measured_against_the_sampler():
    given = responses(1)
    logprob, entropy, batch, _ = packed(given, "sequence", *LAYOUTS["packed"])
    with jax.enable_x64(True):
        _, sums = policy_loss(PolicyLoss(importance_cap=1.05), jnp.asarray(logprob), jnp.asarray(entropy), batch)
    drift = np.concatenate([one.old - one.sampler for one in given])
    assert float(sums["mismatch"]) == pytest.approx(np.abs(drift).sum())
    assert float(sums["mismatch_kl"]) == pytest.approx((np.exp(drift) - drift - 1).sum())
    assert float(sums["importance"]) == pytest.approx(np.exp(drift).sum())
    assert float(sums["importance_capped"]) == (np.exp(drift) > 1.05).sum() > 0
    assert float(sums["kl"]) == pytest.approx(
        sum(np.sum(np.exp(o.reference - o.logprob) - (o.reference - o.logprob) - 1) for o in given)
    )


def test_response_mean_is_taken_within_each_response():
    value = jnp.asarray([[1.0, 3.0, 10.0, 20.0, 99.0]])
    found = response_mean(value, np.array([[0, 0, 1, 1, 0]]), jnp.asarray([[1.0, 1, 1, 1, 0]]))
    np.testing.assert_allclose(found[0, :4], [2, 2, 15, 15])


def test_estimators_and_their_expected_gradients():
    """By enumeration over a small vocabulary: what each would regularise inside a loss (float64, 1e-12)."""
    rng = np.random.default_rng(0)
    logits, reference = rng.normal(size=(2, 7))
    log_q = reference - np.log(np.exp(reference).sum())
    with jax.enable_x64(True):
        p = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
        log_p = np.log(p)
        true_kl = float(p @ (log_p - log_q))
        assert p @ np.asarray(kl_estimate("k1", log_p, log_q)) == pytest.approx(true_kl)
        assert p @ np.asarray(kl_estimate("k3", log_p, log_q)) == pytest.approx(true_kl)
        assert np.all(np.asarray(kl_estimate("k3", log_p, log_q)) >= 0)
        expected = {}
        for name in ("k1", "k2", "k3"):
            each = lambda z, name=name: kl_estimate(name, jax.nn.log_softmax(z), jnp.asarray(log_q))  # noqa: E731
            expected[name] = p @ np.asarray(jax.jacobian(each)(jnp.asarray(logits)))
        of_kl = jax.grad(lambda z: jnp.sum(jax.nn.softmax(z) * (jax.nn.log_softmax(z) - log_q)))(jnp.asarray(logits))
    np.testing.assert_allclose(expected["k1"], 0, atol=1e-12)
    np.testing.assert_allclose(expected["k2"], of_kl, atol=1e-12)
    np.testing.assert_allclose(expected["k3"], p - np.exp(log_q), atol=1e-12)  # ∇KL(q ‖ p)


def test_advantages_by_hand_and_zero_variance():
    rewards = np.array([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    # mean −0.5, population standard deviation sqrt(0.75)
    centred = np.array([1.5, -0.5, -0.5, -0.5])
    found = np.asarray(group_advantages(rewards))
    np.testing.assert_allclose(found[0], centred / np.sqrt(0.75), rtol=1e-5)
    assert np.all(found[1] == 0)
    np.testing.assert_allclose(group_advantages(rewards, normalise_std=False)[0], centred, rtol=1e-6)


def test_rewards_by_hand():
    assert [verdict_reward(v, 1) for v in (1, 2, None)] == [1.0, -1.0, -1.0]
    # One pair in both orders, three samples: both right, one right, none.
    rewards = np.array([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0]])
    np.testing.assert_allclose(consistency_reward(rewards, 1.0), [[1, -1, -1], [1, -1, -1]])
    np.testing.assert_allclose(consistency_reward(rewards, 0.5), [[1, 0, -1], [1, -1, -1]])
    # 2503.14476, eq. 13, with a limit of 10 and a window of 4.
    np.testing.assert_allclose(overlong_penalty(np.array([1, 6, 7, 8, 10]), 10, 4), [0, 0, -0.25, -0.5, -1])
    np.testing.assert_array_equal(overlong_penalty(np.array([1, 10]), 10, 0), [0, 0])


def test_supervised_loss_sums_over_tokens():
    logprob, mask = -np.arange(6.0).reshape(2, 3), np.array([[1, 1, 0], [1, 0, 0]])
    total, sums = supervised_loss(jnp.asarray(logprob), jnp.asarray(mask))
    assert (float(total), float(sums["tokens"])) == (0 + 1 + 3, 3)
