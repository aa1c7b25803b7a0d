"""From ratios of depth to copy numbers.

States of bins, runs, segments, genes of the chromosome and of plasmids.
"""
