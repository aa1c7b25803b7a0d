"""Label every base of a long RNA-seq read: adapters, barcode, UMI, poly-A or poly-T tail, cDNA.

Reads with known labels are simulated from a protocol (``seq_orders.yaml``), a convolutional
network with a conditional random field learns them, and the labels become segments, validity and
barcodes (TensorFlow, Keras 3).
"""

from seqfoundry.core.family import Example, Family

FAMILY = Family(
    name="reads",
    package=__name__,
    summary="label every base of a long RNA-seq read: adapters, barcode, UMI, poly-A/T tail, cDNA",
    verbs=("simulate", "train", "evaluate", "annotate"),
    frameworks=("tensorflow", "keras"),
    examples=(
        Example("annotate", "annotate", "reads.fastq", ("--whitelist", "{example}/whitelist.tsv")),
    ),
    reference_suffix="_params.yaml",
    champion="reads-10x3p_sc_ont_016",
)
