"""Where V(D)J recombination trims genes and how it joins them.

RAG cuts a V, D or J gene at its end and leaves a hairpin; opened, it ends in up to two palindromic
(P) nucleotides; exonucleases then trim it, and the two ends are joined, sharing a stretch of
identical bases (microhomology) or not. The models give the probability of every trimming pair, and
of every ligation, as a function of the genes' sequences: conditional logits whose coefficients are
biology. After Russell et al. (2025); docs/vdj.md has the citation.
"""

from seqfoundry.core.family import Example, Family

FAMILY = Family(
    name="vdj",
    package=__name__,
    summary="where V(D)J recombination trims genes and how it joins them",
    verbs=("simulate", "prepare", "train", "evaluate", "score"),
    frameworks=("jax", "optax"),
    examples=(Example("score", "score", "rearrangements.tsv"),),
    champion="vdj-twostep-em",
)
