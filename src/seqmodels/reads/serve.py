"""The served model: its files, and bases in, segments out.

A model folder holds ``served.json`` (what the registry and ``apply`` must know), ``model.json`` (network and
protocol) and ``weights.h5``. No pickle.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import seqmodels
from seqmodels.core import data as files
from seqmodels.core import dna
from seqmodels.core.config import build_plain, dump_yaml, to_dict
from seqmodels.core.dna import Codes, Offsets
from seqmodels.core.errors import ConfigError, InputError, ModelError
from seqmodels.core.provenance import pinned, warn_version
from seqmodels.reads import data as batches
from seqmodels.reads import model as networks
from seqmodels.reads.config import ConvNetwork, DecodeConfig, ResidualNetwork, build_network
from seqmodels.reads.crf import marginals, viterbi
from seqmodels.reads.data import Runs, collapse
from seqmodels.reads.protocol import CDNA, Protocol
from seqmodels.reads.structure import Architecture, Grammar, Graph, architectures, build_graph, parse

FORMAT_VERSION = 1
_BATCH_TOKENS = 32_768  # bases of one prediction batch: fast on two cores, small enough for any GPU

# a full-length read of the 10x 3' protocol; any DNA is legal
EXAMPLE = pd.DataFrame(
    {
        "sequence": [
            "CTACACGACGCTCTTCCGATCTTTTATGCAGACTAGATACGTACGTACGTTTTTTTTTTTTTTTTTTTTTTTTT"
            "GATTACAGATTACACCGGATCGATTTAGCGCGCTATATCCCATGTACTCTGCGTTGATACCACTGCTT"
        ]
    }
)
# the form of an answer, for the signature: a poor model may find no molecule in the example
ANSWER = pd.DataFrame(
    {
        "read_length": [142],
        "architecture": ["valid"],
        "reason": ["valid"],
        "orientation": ["+"],
        "segments": [[{"label": "5p", "start": 0, "end": 22, "confidence": 0.99}]],
        "fragments": [[{"start": 0, "end": 142, "orientation": "+", "whole": True}]],
    }
)
REQUIREMENTS = pinned("edlib", "h5py", "keras", "numba", "numpy", "pandas", "pydantic", "pyyaml", "tensorflow")


@dataclass(frozen=True)
class ReadModel:
    """A network ready to answer, with the protocol it was trained for."""

    network: Any
    config: ConvNetwork | ResidualNetwork
    protocol: Protocol
    decode: DecodeConfig
    grammar: Grammar
    graph: Graph | None
    logits: Any

    @classmethod
    def of(
        cls, network: Any, config: ConvNetwork | ResidualNetwork, protocol: Protocol, decode: DecodeConfig
    ) -> "ReadModel":
        """Make a network answer for a protocol."""
        graph = build_graph(protocol, decode) if decode.grammar else None
        grammar = Grammar(protocol, decode.adapter_distance, decode.adapter_slack)
        return cls(network, config, protocol, decode, grammar, graph, networks.make_predict(network))


def save(model: ReadModel, config: Any, folder: Path) -> None:
    """Write a model folder; ``config`` is the room's ``Config``, whose model names it in the registry."""
    folder.mkdir(parents=True, exist_ok=True)
    protocol = model.protocol
    served = {
        "format_version": FORMAT_VERSION,
        "room": "reads",
        "package_version": seqmodels.__version__,
        "registered_name": f"reads-{config.model}",
        "about": f"Labels every base of a long RNA-seq read of the library {protocol.library} "
        f"({', '.join(segment.name for segment in protocol.segments)}) and finds the molecules in it.",
        "limits": [
            "Trained on simulated reads only: shares on real reads are to be checked on your own.",
            "Segment ends are uncertain by a base or two where insertions and deletions are possible.",
            "Reads of another library are labelled too, and wrongly; most of them come out as invalid.",
        ],
        "input_columns": list(EXAMPLE.columns),
        "labels": list(protocol.labels),
        "barcodes": list(protocol.barcodes),
        "barcode_lengths": {one.name: one.length for one in protocol.segments if one.name in protocol.barcodes},
        "umis": list(protocol.umis),
        "insert": CDNA,
        "strand": protocol.strand,
        "tails": [segment.name for segment in protocol.segments if segment.kind == "tail"],
    }
    files.write_json(folder / "served.json", served)
    networks.save_weights(model.network, folder / "weights.h5")
    shape = {"network": asdict(model.config), "protocol": asdict(protocol), "decode": asdict(model.decode)}
    files.write_json(folder / "model.json", {**shape, "weights_md5": files.md5(folder / "weights.h5")})


def save_mission_files(model: ReadModel, name: str, folder: Path) -> None:
    """Write the files that the reference's tools take: weights, label binarizer, network parameters.

    The binarizer is a pickle because those tools read one; nothing of ours ever does.
    """
    import pickle

    from sklearn.preprocessing import LabelBinarizer

    networks.save_weights(model.network, folder / f"{name}.h5")
    with files.written_whole(folder / f"{name}_lbl_bin.pkl") as temporary:
        temporary.write_bytes(pickle.dumps(LabelBinarizer().fit(list(model.protocol.labels))))
    files.write_text(folder / f"{name}_params.yaml", dump_yaml(to_dict(model.config)))


def load(folder: Path) -> ReadModel:
    """Rebuild what ``save`` wrote.

    Raises
    ------
    ModelError
        If a file is missing or damaged, of another room, or of a format that this version cannot read.
    """
    try:
        served = json.loads((folder / "served.json").read_text(encoding="utf-8"))
        shape = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        room, version, package = served["room"], served["format_version"], served["package_version"]
        network_values, protocol_values, decode_values = shape["network"], shape["protocol"], shape["decode"]
        weights_md5 = shape["weights_md5"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: must be a whole model folder of the room reads, got: {error}") from None
    if room != "reads":
        raise ModelError(f"{folder}: must be a model of the room reads, got one of {room}")
    if version != FORMAT_VERSION:
        raise ModelError(f"{folder}: format_version must be {FORMAT_VERSION}, got {version}; update seqmodels")
    warn_version(folder, package)
    where = str(folder / "model.json")
    if not isinstance(network_values, dict):
        raise ModelError(f"{where}: network must be a mapping, got {network_values!r}")
    try:
        config = build_network(network_values, where)
        protocol = build_plain(protocol_values, Protocol, origin=lambda _: where)
        decode = build_plain(decode_values, DecodeConfig, origin=lambda _: where)
    except ConfigError as error:  # nobody's settings here, but a file of ours that is damaged
        raise ModelError(str(error)) from None
    network = networks.build(config, len(protocol.labels), seed=0)
    weights = folder / "weights.h5"
    networks.load_weights(network, weights)  # refuses what is no such file; a flipped bit shows in the checksum only
    if files.md5(weights) != weights_md5:
        raise ModelError(f"{weights}: must have the checksum {weights_md5} of model.json, got {files.md5(weights)}")
    return ReadModel.of(network, config, protocol, decode)


def predict(model: ReadModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Find the segments and molecules of every ``sequence``; new columns only, same index, same order.

    Returns
    -------
    ``read_length``; ``architecture`` (valid or invalid), ``reason`` and ``orientation`` (+, -, empty); ``segments``:
    a list of ``label``, ``start``, ``end`` (0-based, half-open) and ``confidence`` (mean posterior probability of the
    label), which tile the read; ``fragments``: a list of ``start``, ``end``, ``orientation`` of its molecules, and
    whether they are ``whole`` (else an end is missing or an adapter broken, but barcodes and cDNA are there).

    Raises
    ------
    InputError
        If there is no column ``sequence``, or a value in it is no text or has a letter that is not IUPAC; rows are
        counted from 0.
    """
    codes, offsets = dna.encode(_sequences(frame))
    runs, confidence = read_runs(model, codes, offsets)
    found = architectures(runs, codes, offsets, model.grammar)
    return pd.DataFrame(
        {
            "read_length": np.diff(offsets),
            "architecture": _column(["valid" if one.is_valid else "invalid" for one in found], "str"),
            "reason": _column([one.reason for one in found], "str"),
            "orientation": _column([one.orientation for one in found], "str"),
            "segments": _column(_segments(runs, offsets, confidence, model.protocol.labels), object),
            "fragments": _column(_fragments(runs, found), object),
        }
    ).set_axis(frame.index)


def _sequences(frame: pd.DataFrame) -> list[str]:
    if "sequence" not in frame:
        raise InputError(f"reads: must have the column sequence, got {list(frame.columns)}")
    sequences: list[str] = frame["sequence"].tolist()
    for number, sequence in enumerate(sequences):
        if not isinstance(sequence, str):
            raise InputError(f"sequence {number}: must be text, got {sequence!r}")
    return sequences


def _column(values: Sequence[Any], dtype: Any) -> pd.Series:
    """Make a column whose type is the same without rows."""
    column: pd.Series = pd.Series(values, dtype=dtype)
    return column


def read_runs(model: ReadModel, codes: Codes, offsets: Offsets) -> tuple[Runs, NDArray[np.float32]]:
    """Return the segments of flat reads, and for each base the posterior probability of its label."""
    labels = np.zeros(len(codes), dtype=np.uint8)
    confidence = np.zeros(len(codes), dtype=np.float32)
    begins = np.zeros(len(codes), dtype=np.bool_)  # of segments; two neighbours may have the same label
    lengths = np.diff(offsets)
    crf = model.network.crf()
    for reads in batches.plan(lengths, np.arange(len(lengths)), tokens=_BATCH_TOKENS, generator=None):
        padded, widths = batches.padded_codes(codes, offsets, reads)
        logits = np.asarray(model.logits(padded))
        columns = np.arange(padded.shape[1])
        real = columns < widths[:, None]
        places = (offsets[reads][:, None] + columns)[real]
        if model.graph is None:
            labels[places] = viterbi(logits, widths, crf)[real]
        else:
            found = parse(logits, widths, model.graph, crf)
            firsts = np.concatenate([[0], found.ends[:-1]])
            firsts[found.offsets[:-1]] = 0
            owners = np.repeat(reads, np.diff(found.offsets))
            parts = model.graph.labels[found.nodes]
            labels[places] = np.repeat(parts, found.ends - firsts)
            is_insert = parts == model.protocol.labels.index(CDNA)  # a random end and an insert are one stretch
            begins[(offsets[owners] + firsts)[~is_insert]] = True
        posterior = marginals(logits, widths, crf)[real]
        confidence[places] = posterior[np.arange(len(places)), labels[places]]
    return collapse(labels, offsets, begins), confidence


def _segments(
    runs: Runs, offsets: Offsets, confidence: NDArray[np.float32], names: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Write the runs of every read as segments, with the mean confidence of their bases."""
    first = np.repeat(offsets[:-1], np.diff(runs.offsets)) + runs.starts
    # in double precision: a cDNA of a hundred thousand bases would lose the fourth digit
    sums = np.add.reduceat(confidence, first, dtype=np.float64) if len(first) else np.zeros(0)
    means = sums / (runs.ends - runs.starts)
    rows = [
        {"label": names[label], "start": start, "end": end, "confidence": mean}
        for label, start, end, mean in zip(
            runs.labels.tolist(), runs.starts.tolist(), runs.ends.tolist(), means.tolist(), strict=True
        )
    ]
    return [rows[runs.of(read)] for read in range(len(offsets) - 1)]


def _fragments(runs: Runs, found: Sequence[Architecture]) -> list[list[dict[str, Any]]]:
    """Write the molecules of every read with their places in it, in the order of the read."""
    answer = []
    for read, architecture in enumerate(found):
        base = int(runs.offsets[read])
        molecules = [(one, True) for one in architecture.fragments] + [(one, False) for one in architecture.incomplete]
        rows: list[dict[str, Any]] = [
            {
                "start": int(runs.starts[base + fragment.first]),
                "end": int(runs.ends[base + fragment.last]),
                "orientation": fragment.orientation,
                "whole": whole,
            }
            for fragment, whole in molecules
        ]
        answer.append(sorted(rows, key=lambda row: row["start"]))
    return answer
