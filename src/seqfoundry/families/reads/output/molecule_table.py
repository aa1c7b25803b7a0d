"""From a model's answer to molecules.

One row for every molecule found in a read, with the columns users know.

A valid read is one molecule. A read of several is split: each becomes a row
``<ReadName>__frag<k>`` with its own part of the read, and the whole read stays among the invalid
ones. Molecules without one of their ends are rows of their own kind, ``<ReadName>__part<k>``.
Positions are 0-based, half-open, within ``read``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from seqfoundry.families.reads.output.demultiplex import oriented

# bases around the barcode segment in which a barcode is looked for: its ends are soft by a base or
# two
WINDOW = 3
TAIL_LENGTHS = "polyA_lengths"  # the reference's name, whether the tail is read as polyA or polyT


@dataclass(frozen=True, slots=True)
class Molecule:
    """One molecule: its row of the table, and what demultiplexing needs of it.

    Barcodes, and the windows around them, lie in the orientation of a list of cells; cDNA and UMI
    in the sense of the transcript.
    """

    row: dict[str, Any]
    barcodes: dict[str, str]
    windows: dict[str, str]
    cdna: tuple[str, str | None]
    umi: str
    parent: int


def split(
    record: Any, answer: Mapping[str, Any], served: Mapping[str, Any], parent: int
) -> list[Molecule]:
    """Cut a read (``name``, ``sequence``, ``qualities``) into its molecules.

    None if there is nothing in it.
    """
    kinds = [
        [one for one in answer["fragments"] if bool(one["whole"]) is whole]
        for whole in (True, False)
    ]
    return [one for fragments in kinds for one in _cut(record, answer, served, parent, fragments)]


def _cut(
    record: Any,
    answer: Mapping[str, Any],
    served: Mapping[str, Any],
    parent: int,
    fragments: Sequence[Any],
) -> list[Molecule]:
    """Cut the molecules of one kind, whole ones or incomplete ones, out of a read."""
    is_valid = answer["architecture"] == "valid"
    found = []
    for number, fragment in enumerate(fragments, start=1):
        whole = bool(fragment["whole"])
        start, end = (
            (0, len(record.sequence)) if is_valid else (fragment["start"], fragment["end"])
        )
        inside = [s for s in answer["segments"] if s["start"] >= start and s["end"] <= end]
        name = record.name if is_valid else f"{record.name}__{'frag' if whole else 'part'}{number}"
        parent_kind = "concatenated" if len(fragments) > 1 else "a read with extra segments"
        split_off = f"split from {parent_kind} (frag {number}/{len(fragments)})"
        reason = split_off if whole and not is_valid else answer["reason"]
        qualities = record.qualities
        piece = (
            record.sequence[start:end],
            qualities[start:end] if qualities is not None else None,
        )
        shifted = [{**s, "start": s["start"] - start, "end": s["end"] - start} for s in inside]
        span = (fragment["start"] - start, fragment["end"] - start)
        row = {
            "ReadName": name,
            "read_length": end - start,
            "read": piece[0],
            "base_qualities": piece[1],
        }
        row |= segment_columns(shifted, served, span, fragment["orientation"])
        row |= {"architecture": "valid" if whole else "incomplete", "reason": reason}
        row["orientation"] = fragment["orientation"]
        row |= {"parent": record.name, "parent_start": start}
        found.append(_molecule(row, piece, (shifted, span), served, parent))
    return found


def _molecule(
    row: dict[str, Any],
    piece: tuple[str, str | None],
    places: tuple[list[dict[str, Any]], tuple[int, int]],
    served: Mapping[str, Any],
    parent: int,
) -> Molecule:
    """Cut barcode windows, cDNA and UMI out of a molecule, oriented as they are used."""
    (sequence, qualities), (segments, span), turn = piece, places, row["orientation"]
    within = [s for s in segments if s["start"] >= span[0] and s["end"] <= span[1]]
    barcodes, windows = {}, {}
    for name in served["barcodes"]:
        first = next((s for s in within if s["label"] == name), None)
        if first is None:
            barcodes[name] = windows[name] = ""
            continue
        seen = sequence[first["start"] : first["end"]]
        window = sequence[max(0, first["start"] - WINDOW) : first["end"] + WINDOW]
        row[f"{name}_Sequences"] = seen  # as it stands in the read
        barcodes[name] = oriented(seen, None, orientation=turn, strand="fwd")[0]
        windows[name] = oriented(window, None, orientation=turn, strand="fwd")[0]
    inserts = [s for s in within if s["label"] == served["insert"]]
    start, end = (inserts[0]["start"], inserts[-1]["end"]) if inserts else (0, 0)
    cdna = oriented(
        sequence[start:end],
        qualities[start:end] if qualities is not None else None,
        orientation=turn,
        strand=served["strand"],
    )
    umis = "".join(sequence[s["start"] : s["end"]] for s in within if s["label"] in served["umis"])
    # joined before they are turned, since that changes their order
    umi, _ = oriented(umis, None, orientation=turn, strand=served["strand"])
    tails = [str(s["end"] - s["start"]) for s in within if s["label"] in served.get("tails", ())]
    row[TAIL_LENGTHS] = ", ".join(tails)
    return Molecule(row, barcodes, windows, cdna, umi, parent)


def segment_columns(
    segments: Sequence[Mapping[str, Any]],
    served: Mapping[str, Any],
    span: tuple[int, int],
    orientation: str,
) -> dict[str, Any]:
    """Write segments as ``<label>_Starts``, ``_Ends`` and ``_Confidence``.

    Positions are joined by ", "; confidence is the least.

    cDNA outside ``span``, the molecule's own part, is a random end: ``random_s`` where the
    molecule begins in the orientation of the read, ``random_e`` where it ends.
    """
    before, after = ("random_s", "random_e") if orientation != "-" else ("random_e", "random_s")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for segment in segments:
        name = segment["label"]
        if name == served["insert"] and segment["end"] <= span[0]:
            name = before
        elif name == served["insert"] and segment["start"] >= span[1]:
            name = after
        grouped.setdefault(name, []).append(segment)
    columns: dict[str, Any] = {}
    for name in (*served["labels"], "random_s", "random_e"):
        found = grouped.get(name, [])
        columns[f"{name}_Starts"] = ", ".join([str(s["start"]) for s in found])
        columns[f"{name}_Ends"] = ", ".join([str(s["end"]) for s in found])
        columns[f"{name}_Confidence"] = min([s["confidence"] for s in found], default=None)
    return columns


def invalid_row(
    record: Any, answer: Mapping[str, Any], served: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the row of a read that is not one valid molecule."""
    row = {"ReadName": record.name, "read_length": len(record.sequence), "read": record.sequence}
    row["base_qualities"] = record.qualities
    row |= segment_columns(answer["segments"], served, (0, len(record.sequence)), "+")
    return row | {"architecture": "invalid", "reason": answer["reason"], "orientation": ""}


def view(record: Any, answer: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Describe the first ``most`` bases of a read as a drawing needs them.

    Title, letters, labels and their lengths.
    """
    length = len(record.sequence)
    part = f", first {most:,} of {length:,} bases" if length > most else ""
    shown = [s for s in answer["segments"] if s["start"] < most]
    return {
        "title": f"{record.name}: {answer['reason'][:60]}{part}",
        "sequence": record.sequence[:most],
        "labels": [s["label"] for s in shown],
        "sizes": [min(s["end"], most) - s["start"] for s in shown],
    }


def schema(served: Mapping[str, Any], kind: str, *, has_whitelist: bool) -> Any:
    """Columns of a table and their types; the same for every model of a protocol."""
    text, number, real = pa.string(), pa.int64(), pa.float64()
    columns = [
        ("ReadName", text),
        ("read_length", number),
        ("read", text),
        ("base_qualities", text),
    ]
    for name in (*served["labels"], "random_s", "random_e"):
        columns += [(f"{name}_Starts", text), (f"{name}_Ends", text), (f"{name}_Confidence", real)]
    columns += [
        ("architecture", text),
        ("reason", text),
        ("orientation", text),
        ("model_name", text),
    ]
    if kind != "invalid":
        columns += [(f"{name}_Sequences", text) for name in served["barcodes"]]
        columns += [
            ("parent", text),
            ("parent_start", number),
            ("cDNA_length", number),
            ("UMI", text),
        ]
        columns += [(TAIL_LENGTHS, text)] if served.get("tails") else []
        columns += [("demux_header", text), ("demux_bucket", text)]
    if kind != "invalid" and has_whitelist:
        for name in served["barcodes"]:
            columns += [(f"corrected_{name}", text), (f"corrected_{name}_min_dist", number)]
            columns += [(f"corrected_{name}_counts_with_min_dist", number)]
        columns += [("cell_id", number), ("match_type", text)]
    return pa.schema(columns)
