"""Rearrangements.

Tables of several forms brought to a normal one, and observations pooled for a likelihood.
"""
