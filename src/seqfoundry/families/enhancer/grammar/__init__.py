"""What the simulator plants: motifs and the their activity, sequences by a grammar of them, edits of known order."""
