"""Copy number of bins, genes and plasmid genes from read depth, for bacterial cohorts.

The cohorts are of the *Klebsiella pneumoniae* complex.

A variational autoencoder learns the depth that a sample is expected to have in every bin of the
chromosome (replication gradient, GC, regions that its lineage lacks); a hidden Markov model
segments the ratio of observed to expected depth; genes and plasmid genes are called from segments
and ratios (PyTorch, numba).
"""

from seqfoundry.core.family import Example, Family

FAMILY = Family(
    name="copynumber",
    package=__name__,
    summary="copy number of bins, genes and plasmid genes from read depth, for bacterial cohorts",
    verbs=("simulate", "prepare", "train", "evaluate", "annotate"),
    frameworks=("torch",),
    examples=(Example("annotate", "annotate"),),
    has_worker_processes=True,
    champion="copynumber-kpsc",
)
