"""Read depth along a reference: bins, tables and stores of counts, lineages to simulate it, baselines to expect it."""
