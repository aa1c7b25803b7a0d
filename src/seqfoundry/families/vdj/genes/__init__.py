"""The genes of a locus.

Sequences and where they come from, ends, and all ways to trim and join two of them.
"""
