"""Pairwise judges, the protocol that asks them, and the statistics of their verdicts."""
