"""From scores of bases to labels, segments and architecture.

The label chain, and reads parsed by valid structures.
"""
