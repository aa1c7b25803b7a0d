"""Calls of genes, as tables write them, looked up among the genes of the germline."""

import difflib
import re

import numpy as np

from seqfoundry.core.errors import MissingError
from seqfoundry.families.vdj.genes.germline import SEGMENT_OF, Germline, resolve
from seqfoundry.families.vdj.rearrangements.chunks import RawRows, junctions

NO_CALL = ("", "NA", "NaN", "nan", "None", "null", "unresolved", "no data")


def find_genes(chunk: RawRows, file_format: str, ambiguous: str) -> None:
    """Find the gene of every call; each distinct call is looked up once."""
    codes, loci = chunk.factors("locus")
    for number, name in enumerate(loci):
        if name not in (chunk.germline.locus, *NO_CALL):
            chunk.drop(codes == number, f"other locus: {name}")
    suffix = {"airr": "call", "immunoseq": "resolved"}.get(file_format, "gene")
    for segment in "vj" if junctions(chunk.germline) == ("vj",) else "vdj":
        codes, calls = chunk.factors(f"{segment}_{suffix}")
        side = "d5" if segment == "d" else segment
        place = {gene.name: index for index, gene in enumerate(chunk.germline.of(side))}
        found = [
            _look_up(chunk.germline, side, imgt_name(call, tuple(place)), ambiguous)
            for call in calls
        ]
        for number, (_, reason) in enumerate(found):
            if reason:
                chunk.drop(codes == number, reason)
        chunk.genes[segment] = np.array(
            [place.get(name, -1) for name, _ in found], dtype=np.int64
        )[codes]


def _look_up(germline: Germline, side: str, call: str, ambiguous: str) -> tuple[str, str]:
    """Return the name of the gene that a call means, or an empty one and why there is none."""
    segment, name = SEGMENT_OF[side], call.split(",")[0].strip()
    if name in NO_CALL:
        return "", f"no {segment} gene"
    if "," in call and ambiguous == "reject":
        return "", f"ambiguous {segment} gene"
    try:
        return resolve(germline, side, name), ""
    except MissingError:
        known = [gene.name for gene in germline.of(side)]
        if any(gene.startswith(f"{name}*") for gene in known):
            return "", f"{segment} gene {name} without an allele, and its alleles differ"
        if (locus := re.match(r"TR[ABGD]|IG[HKL]", name)) and locus[0] != germline.locus:
            return "", f"other locus: {locus[0]}"
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)
        return "", f"unknown {segment} gene {name} (nearest: {', '.join(near)})"


def imgt_name(call: str, known: tuple[str, ...]) -> str:
    """Translate Adaptive's name of a gene into IMGT's, such as TCRAV01-02 into TRAV1-2*01.

    Others are returned as is.

    Adaptive writes -01 where IMGT has one gene of the family, and leaves out the second name of a
    gene that two loci share; of the possible names the first among the ``known`` is meant, as
    allele 01 (as in the reference) if it names none that is known. Genes that Adaptive does not
    tell apart (TCRBV12-03/12-04) become a list with commas.
    """
    if not call.startswith("TCR"):
        return call
    gene, _, allele = call.partition("*")
    text = re.sub(r"-or(\d+)_(\d+)", r"/OR\1-\2", gene.replace("TCR", "TR", 1))
    text = re.sub(r"(?<=[A-Z/-])0+(?=\d)", "", text)
    if alike := re.match(r"(.*?[VDJ])([\d-]+(?:/[\d-]+)+)$", text):
        return ",".join(
            imgt_name(f"TC{(alike[1] + part)[1:]}*{allele}", known) for part in alike[2].split("/")
        )
    possible = [text, re.sub(r"-1(?=/|$)", "", text)]
    shared = sorted(
        {
            name.partition("*")[0]
            for name in known
            if name.startswith(tuple(f"{p}/DV" for p in possible))
        }
    )
    alleles = (f"{name}*{number}" for name in [*possible, *shared] for number in (allele, "01"))
    return next((name for name in alleles if name in known), text)
