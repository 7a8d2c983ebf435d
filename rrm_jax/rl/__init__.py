"""Rewards, advantages, log-probabilities and losses, as pure functions."""
