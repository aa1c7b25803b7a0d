"""What the simulator plants.

Motifs and the their activity, sequences by a grammar of them, edits of known order.
"""
