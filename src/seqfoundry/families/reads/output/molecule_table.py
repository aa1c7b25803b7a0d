"""From a model's answer to molecules.

One row for every molecule found in a read, with the columns users know.

A valid read is one molecule. A read of several is split: each becomes a row
``<ReadName>__frag<k>`` with its own part of the read, and the whole read stays among the invalid
ones. Molecules without one of their ends are rows of their own kind, ``<ReadName>__part<k>``.
Positions are 0-based, half-open, within ``read``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from seqfoundry.families.reads.output.demultiplex import oriented
from seqfoundry.families.reads.protocol.serving import Serving

TAIL_LENGTHS = "polyA_lengths"  # the reference's name, whether the tail is read as polyA or polyT

Segment: TypeAlias = Mapping[str, Any]  # label, start, end and confidence, as the model answers
Bases: TypeAlias = tuple[str, str | None]  # letters and qualities


@dataclass(frozen=True, slots=True)
class Molecule:
    """One molecule: its row of the table, and what stands in it in the protocol's order.

    Sequence, qualities and segments have the sense of Read 1 of the library, which is that of a
    list of cells: those of a ``-`` molecule are turned.

    Parameters
    ----------
    row
        Values of the table's columns, by name.
    parent
        Number of its read in the chunk.
    sequence, qualities
        Of the part of the read that holds it.
    segments
        Called segments of the molecule itself; positions are within ``sequence``.
    """

    row: dict[str, Any]
    parent: int
    sequence: str
    qualities: str | None
    segments: Sequence[Segment]

    def window(self, name: str, length: int, slack: int) -> str:
        """Cut a barcode segment and ``slack`` bases around it; empty if it is missing.

        A segment that was called short of ``length`` has a wider window.
        """
        for segment in self.segments:
            if segment["label"] == name:
                start, end = segment["start"], segment["end"]
                margin = slack + max(0, length - (end - start))
                return self.sequence[max(0, start - margin) : end + margin]
        return ""

    def tail_lengths(self, serving: Serving) -> list[int]:
        """Bases of its poly-A or poly-T tails."""
        return [
            segment["end"] - segment["start"]
            for segment in self.segments
            if segment["label"] in serving.tails
        ]

    def cdna(self, serving: Serving) -> Bases:
        """Cut the cDNA, in the sense of the transcript."""
        inserts = [segment for segment in self.segments if segment["label"] == serving.insert]
        insert = slice(inserts[0]["start"], inserts[-1]["end"]) if inserts else slice(0, 0)
        return oriented(
            self.sequence[insert],
            None if self.qualities is None else self.qualities[insert],
            orientation="+",
            strand=serving.strand,
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a read that holds one molecule, as it stands in the read.

    Parameters
    ----------
    sequence, qualities
        Of the part, as it stands in the read.
    segments
        Segments in the part; positions are within it.
    start, end
        Where the molecule begins and ends in the part: what lies outside are random ends.
    orientation
        ``+`` or ``-``.
    """

    sequence: str
    qualities: str | None
    segments: Sequence[Segment]
    start: int
    end: int
    orientation: str

    @property
    def molecule_segments(self) -> list[Segment]:
        """Segments of the molecule itself."""
        return [
            segment
            for segment in self.segments
            if segment["start"] >= self.start and segment["end"] <= self.end
        ]


def split(read: Any, answer: Mapping[str, Any], serving: Serving, parent: int) -> list[Molecule]:
    """Cut a read into its molecules, if it has any: whole ones first, then incomplete ones."""
    molecules = []
    for is_whole in (True, False):
        fragments = [
            fragment for fragment in answer["fragments"] if bool(fragment["whole"]) is is_whole
        ]
        for number, fragment in enumerate(fragments, start=1):
            cut = _cut_fragment(read, answer, fragment)
            row = _describe_molecule(
                read, answer, serving, cut, fragment, number=number, n_fragments=len(fragments)
            )
            molecules.append(_to_molecule(row, cut, serving, parent))
    return molecules


def _cut_fragment(read: Any, answer: Mapping[str, Any], fragment: Mapping[str, Any]) -> Cut:
    """Cut the part of a read that a fragment spans; all of a valid read."""
    start, end = fragment["start"], fragment["end"]
    if answer["architecture"] == "valid":
        start, end = 0, len(read.sequence)
    segments = [
        {**segment, "start": segment["start"] - start, "end": segment["end"] - start}
        for segment in answer["segments"]
        if segment["start"] >= start and segment["end"] <= end
    ]
    return Cut(
        sequence=read.sequence[start:end],
        qualities=None if read.qualities is None else read.qualities[start:end],
        segments=segments,
        start=fragment["start"] - start,
        end=fragment["end"] - start,
        orientation=fragment["orientation"],
    )


def _describe_molecule(
    read: Any,
    answer: Mapping[str, Any],
    serving: Serving,
    cut: Cut,
    fragment: Mapping[str, Any],
    *,
    number: int,
    n_fragments: int,
) -> dict[str, Any]:
    """Write the columns that need no barcode: names, positions, architecture."""
    is_valid_read = answer["architecture"] == "valid"
    is_whole = bool(fragment["whole"])
    name = read.name
    reason = answer["reason"]
    if not is_valid_read:
        name = f"{read.name}__{'frag' if is_whole else 'part'}{number}"
    if is_whole and not is_valid_read:
        origin = "concatenated" if n_fragments > 1 else "a read with extra segments"
        reason = f"split from {origin} (frag {number}/{n_fragments})"
    return {
        "ReadName": name,
        "read_length": len(cut.sequence),
        "read": cut.sequence,
        "base_qualities": cut.qualities,
        **segment_columns(cut.segments, serving, (cut.start, cut.end), cut.orientation),
        "architecture": "valid" if is_whole else "incomplete",
        "reason": reason,
        "orientation": cut.orientation,
        "sample": read.sample,
        "parent": read.name,
        "parent_start": 0 if is_valid_read else fragment["start"],
    }


def _to_molecule(row: dict[str, Any], cut: Cut, serving: Serving, parent: int) -> Molecule:
    """Turn a cut part of a read into the sense of Read 1."""
    segments = cut.molecule_segments
    sequence, qualities = oriented(
        cut.sequence, cut.qualities, orientation=cut.orientation, strand="fwd"
    )
    if cut.orientation == "-":
        length = len(sequence)
        segments = [
            {**segment, "start": length - segment["end"], "end": length - segment["start"]}
            for segment in reversed(segments)
        ]
    molecule = Molecule(row, parent, sequence, qualities, segments)
    lengths = molecule.tail_lengths(serving)
    if cut.orientation == "-":
        lengths = lengths[::-1]
    row[TAIL_LENGTHS] = ", ".join(map(str, lengths))
    return molecule


def segment_columns(
    segments: Iterable[Segment],
    serving: Serving,
    span: tuple[int, int],
    orientation: str,
) -> dict[str, Any]:
    """Write segments as ``<label>_Starts``, ``_Ends`` and ``_Confidence``.

    Positions are joined by ", "; confidence is the least.

    cDNA outside ``span``, the molecule's own part, is a random end: ``random_s`` where the
    molecule begins in the orientation of the read, ``random_e`` where it ends.
    """
    before, after = ("random_s", "random_e") if orientation != "-" else ("random_e", "random_s")
    segments_by_name: dict[str, list[Segment]] = {}
    for segment in segments:
        name = segment["label"]
        if name == serving.insert and segment["end"] <= span[0]:
            name = before
        elif name == serving.insert and segment["start"] >= span[1]:
            name = after
        segments_by_name.setdefault(name, []).append(segment)
    columns: dict[str, Any] = {}
    for name in (*serving.labels, "random_s", "random_e"):
        named = segments_by_name.get(name, [])
        columns[f"{name}_Starts"] = ", ".join([str(segment["start"]) for segment in named])
        columns[f"{name}_Ends"] = ", ".join([str(segment["end"]) for segment in named])
        columns[f"{name}_Confidence"] = min(
            [segment["confidence"] for segment in named], default=None
        )
    return columns


def invalid_row(read: Any, answer: Mapping[str, Any], serving: Serving) -> dict[str, Any]:
    """Write the row of a read that is not one valid molecule."""
    length = len(read.sequence)
    return {
        "ReadName": read.name,
        "read_length": length,
        "read": read.sequence,
        "base_qualities": read.qualities,
        **segment_columns(answer["segments"], serving, (0, length), "+"),
        "architecture": "invalid",
        "reason": answer["reason"],
        "orientation": "",
        "sample": read.sample,
    }


def view(read: Any, answer: Mapping[str, Any], n_bases: int) -> dict[str, Any]:
    """Describe the first ``n_bases`` bases of a read as a drawing needs them.

    Title, letters, labels and their lengths.
    """
    length = len(read.sequence)
    part = f", first {n_bases:,} of {length:,} bases" if length > n_bases else ""
    shown = [segment for segment in answer["segments"] if segment["start"] < n_bases]
    return {
        "title": f"{read.name}: {answer['reason'][:60]}{part}",
        "sequence": read.sequence[:n_bases],
        "labels": [segment["label"] for segment in shown],
        "sizes": [min(segment["end"], n_bases) - segment["start"] for segment in shown],
    }


def schema(serving: Serving, kind: str, *, has_whitelist: bool) -> Any:
    """Columns of a table and their types; the same for every model of a protocol."""
    text = pa.string()
    number = pa.int64()
    columns = [
        ("ReadName", text),
        ("read_length", number),
        ("read", text),
        ("base_qualities", text),
    ]
    for name in (*serving.labels, "random_s", "random_e"):
        columns += [
            (f"{name}_Starts", text),
            (f"{name}_Ends", text),
            (f"{name}_Confidence", pa.float64()),
        ]
    columns += [
        ("architecture", text),
        ("reason", text),
        ("orientation", text),
        ("model_name", text),
        ("sample", text),
    ]
    if kind != "invalid":
        columns += [(f"{name}_Sequences", text) for name in serving.barcodes]
        columns += [
            ("parent", text),
            ("parent_start", number),
            ("cDNA_length", number),
            ("UMI", text),
        ]
        columns += [(TAIL_LENGTHS, text)] if serving.tails else []
        columns += [("demux_header", text), ("demux_bucket", text)]
    if kind != "invalid" and has_whitelist:
        for name in serving.barcodes:
            columns += [
                (f"corrected_{name}", text),
                (f"corrected_{name}_min_dist", number),
                (f"corrected_{name}_counts_with_min_dist", number),
            ]
        columns += [("cell_id", number), ("match_type", text)]
    return pa.schema(columns)
