"""Meshes, processes that work together, and what accelerators can do."""
