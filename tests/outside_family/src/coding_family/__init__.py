"""Does a sequence code for a protein? Logistic regression on the shares of its codons in frame
1."""

from pathlib import Path

from seqfoundry.core.family import Example, Family

FAMILY = Family(
    name="coding",
    package=__name__,
    summary="whether a sequence codes for a protein, from its codons",
    verbs=("simulate", "train", "evaluate", "annotate"),
    examples=(Example("annotate", "annotate", "sequences.tsv"),),
    champion="coding-codons",
    parameters=str(Path(__file__).parent / "params"),
)
