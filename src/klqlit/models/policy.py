"""Policies: what samples responses and is trained to sample better ones."""
