"""Read depth along a reference.

Bins, tables and stores of counts, lineages to simulate it, baselines to expect it.
"""
