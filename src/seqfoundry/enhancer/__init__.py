"""Activity of a DNA sequence in seven cell types of the brain: the oracle that scores generated and edited enhancers.

A DeepSTARR-like network, or a linear head on a frozen Enformer or Sei backbone, is trained on measured activities
(PyTorch). Scores of designs (T1), of edits (T3), of variants, and agreement between oracles are computed with it.
"""
