"""Frozen Enformer and Sei: their networks, published checkpoints, cached features, and the linear head on these."""
