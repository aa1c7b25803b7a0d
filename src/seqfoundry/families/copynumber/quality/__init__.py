"""What calls are worth where the truth is known.

Of genes, of segments, and both as the tables of an evaluation.
"""
