"""What bases do.

Variants, all single mutants, contributions of bases, and the network exported for other tools.
"""
