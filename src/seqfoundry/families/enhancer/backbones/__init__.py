"""Frozen Enformer and Sei.

Their networks, published checkpoints, cached features, and the linear head on these.
"""
