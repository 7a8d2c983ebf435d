"""Tournaments: who meets whom, ratings, and when to stop. All that is known here is "compare i with j"."""
