"""Activity of a DNA sequence in seven cell types of the brain.

The oracle that scores generated and edited enhancers.

A DeepSTARR-like network, or a linear head on a frozen Enformer or Sei backbone, is trained on
measured activities (PyTorch). Scores of designs (T1), of edits (T3), of variants, and agreement
between oracles are computed with it.
"""

from seqfoundry.core.family import Example, Family

FAMILY = Family(
    name="enhancer",
    package=__name__,
    summary="activity of a DNA sequence per cell type; scores of designs, edits and variants",
    verbs=("simulate", "prepare", "train", "evaluate", "score"),
    frameworks=("torch",),
    examples=(
        Example("score", "score-t1", "predictions_t1.jsonl", ("--task", "t1")),
        Example("score", "score-t3", "predictions_t3.jsonl", ("--task", "t3")),
    ),
    has_worker_processes=True,
    reference_suffix="oracle.pt",
    reference_file_suffix=".pt",
    champion="enhancer-deepstarr",
)
