"""Reward Reasoning Models in JAX (arXiv 2505.14674): judge, rank, and train on verdicts alone."""

__version__ = "0.1.0"
