"""The served model: its files, and bases in, segments out.

A model folder holds ``served.json`` (what the registry and ``apply`` must know), ``model.json``
(network and protocol) and ``weights.h5``. No pickle.
"""

import itertools
import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import seqfoundry
from seqfoundry.core import dna
from seqfoundry.core.dna import Codes, Offsets
from seqfoundry.core.errors import ConfigError, InputError, ModelError
from seqfoundry.core.family import recorded_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs.provenance import pinned, project_root, warn_version
from seqfoundry.core.settings.config import build_plain, read_yaml
from seqfoundry.families.reads import data as batches
from seqfoundry.families.reads import model as networks
from seqfoundry.families.reads.config import (
    ConvNetwork,
    DecodeConfig,
    ReadsServing,
    ResidualNetwork,
    build_network,
)
from seqfoundry.families.reads.data import LabelRuns, collapse
from seqfoundry.families.reads.labelling.crf import Crf, marginals, viterbi
from seqfoundry.families.reads.labelling.structure import (
    Architecture,
    Graph,
    ReadGrammar,
    architectures,
    build_graph,
    parse,
)
from seqfoundry.families.reads.protocol.seq_orders import CDNA, Protocol

FORMAT_VERSION = 1
_BATCH_TOKENS = (
    32_768  # bases of one prediction batch: fast on two cores, small enough for any GPU
)
_AHEAD = 2  # batches whose scores wait to be decoded while the network goes on
_MOST_PARSES = (
    64  # of one series of labels that are looked at before the read is left to the grammar
)
_WINDOW = 65_536  # bases that the network sees at a time
_ATTENTION_WINDOW = 8192  # the same for networks with attention, whose memory goes with the square
_FAR_CONTEXT = (
    2048  # bases on both sides of a window for networks that see the whole read (LSTM, attention)
)

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
REQUIREMENTS = pinned(
    "edlib", "h5py", "keras", "numba", "numpy", "pandas", "pydantic", "pyyaml", "tensorflow"
)


@dataclass(frozen=True)
class ReadModel:
    """A network ready to answer, with the protocol it was trained for."""

    network: Any
    config: ConvNetwork | ResidualNetwork
    protocol: Protocol
    decode: DecodeConfig
    grammar: ReadGrammar
    graph: Graph | None
    logits: Any

    @classmethod
    def of(
        cls,
        network: Any,
        config: ConvNetwork | ResidualNetwork,
        protocol: Protocol,
        decode: DecodeConfig,
    ) -> "ReadModel":
        """Make a network answer for a protocol."""
        graph = build_graph(protocol, decode) if decode.grammar else None
        grammar = ReadGrammar(protocol, decode.adapter_distance, decode.adapter_slack)
        return cls(
            network, config, protocol, decode, grammar, graph, networks.make_predict(network)
        )


def save(model: ReadModel, config: Any, folder: Path) -> None:
    """Write a model folder.

    ``config.model`` (the family's ``Config`` has one) names it in the registry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    protocol = model.protocol
    serving = ReadsServing(
        format_version=FORMAT_VERSION,
        family="reads",
        package_version=seqfoundry.__version__,
        registered_name=f"reads-{config.model}",
        about=f"Labels every base of a long RNA-seq read of the library {protocol.library} "
        f"({', '.join(segment.name for segment in protocol.segments)}) and finds the molecules in "
        "it.",
        limits=(
            "Trained and measured on simulated data only: shares on real reads are to be checked "
            "on your own.",
            "Segment ends are uncertain by a base or two where insertions and deletions are "
            "possible: few barcodes and "
            "UMIs come out base for base (exact.* in the report), so counting different UMIs "
            "overcounts molecules.",
            "Reads with an adapter several times are called invalid; their molecules are cut out "
            "of most of them.",
            "Reads of another library are labelled too, and wrongly; most of them come out as "
            "invalid.",
        ),
        input_columns=tuple(EXAMPLE.columns),
        labels=tuple(protocol.labels),
        barcodes=tuple(protocol.barcodes),
        barcode_lengths={
            one.name: one.length for one in protocol.segments if one.name in protocol.barcodes
        },
        umis=tuple(protocol.umis),
        insert=CDNA,
        strand=protocol.strand,
        tails=tuple(part.name for part in protocol.segments if part.kind == "tail"),
    )
    serving.write(folder)
    networks.save_weights(model.network, folder / "weights.h5")
    shape = {
        "network": asdict(model.config),
        "protocol": asdict(protocol),
        "decode": asdict(model.decode),
    }
    files.write_json(
        folder / "model.json", {**shape, "weights_md5": files.md5(folder / "weights.h5")}
    )


def import_reference_model(folder: Path, out: Path) -> None:
    """Write a model folder from the mission's files of our own training.

    These are ``{model}.h5`` and ``{model}_params.yaml``.

    They hold neither labels nor decoding: those come from the model's entry in the project's
    ``seq_orders.yaml`` and from its ``full.yaml``. The label binarizer, a pickle, is not read.
    """
    params = project_root() / "params" / "reads"
    network, config, protocol = networks.read_mission(folder, params / "seq_orders.yaml")
    values = read_yaml(params / "full.yaml")["decode"]
    decode = build_plain(values, DecodeConfig, origin=lambda _: str(params / "full.yaml"))
    save(ReadModel.of(network, config, protocol, decode), protocol, out)


def load(folder: Path) -> ReadModel:
    """Rebuild what ``save`` wrote.

    Raises
    ------
    ModelError
        If a file is missing or damaged, of another family, or of a format that this version cannot
        read.
    """
    try:
        served = json.loads((folder / "served.json").read_text(encoding="utf-8"))
        shape = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        family, version, package = (
            recorded_family(served),
            served["format_version"],
            served["package_version"],
        )
        network_values, protocol_values, decode_values = (
            shape["network"],
            shape["protocol"],
            shape["decode"],
        )
        weights_md5 = shape["weights_md5"]
        if family is None:
            raise KeyError("family")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{folder}: must be a whole model folder of the family reads, got: {error}"
        ) from None
    if family != "reads":
        raise ModelError(f"{folder}: must be a model of the family reads, got one of {family}")
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{folder}: format_version must be {FORMAT_VERSION}, got {version}; update seqfoundry"
        )
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
    weights = folder / "weights.h5"
    network = networks.build(config, len(protocol.labels), seed=0)
    networks.load_weights(
        network, weights
    )  # refuses what is no such file; a flipped bit shows in the checksum only
    if files.md5(weights) != weights_md5:
        raise ModelError(
            f"{weights}: must have the checksum {weights_md5} of model.json, got "
            f"{files.md5(weights)}"
        )
    return ReadModel.of(network, config, protocol, decode)


def predict(model: ReadModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Find the segments and molecules of every ``sequence``.

    New columns only, same index, same order.

    Returns
    -------
    ``read_length``; ``architecture`` (valid or invalid), ``reason`` and ``orientation`` (+, -,
    empty); ``segments``: a list of ``label``, ``start``, ``end`` (0-based, half-open) and
    ``confidence`` (mean posterior probability of the label), which tile the read; ``fragments``: a
    list of ``start``, ``end``, ``orientation`` of its molecules, and whether they are ``whole``
    (else an end is missing or an adapter broken, but barcodes and cDNA are there).

    Raises
    ------
    InputError
        If there is no column ``sequence``, or a value in it is no text or has a letter that is not
        IUPAC; rows are counted from 0.
    """
    codes, offsets = dna.encode(_sequences(frame))
    runs, confidence = read_runs(model, codes, offsets)
    found = architectures(runs, codes, offsets, model.grammar)
    return pd.DataFrame(
        {
            "read_length": np.diff(offsets),
            "architecture": _column(
                ["valid" if one.is_valid else "invalid" for one in found], "str"
            ),
            "reason": _column([one.reason for one in found], "str"),
            "orientation": _column([one.orientation for one in found], "str"),
            "segments": _column(
                _segments(runs, offsets, confidence, model.protocol.labels), object
            ),
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


@dataclass(frozen=True)
class _Labelled:
    """Labels, their posterior probabilities and the begins of segments, flat like the reads."""

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    begins: NDArray[np.bool_]  # of segments; two neighbours may have the same label


def read_runs(
    model: ReadModel, codes: Codes, offsets: Offsets
) -> tuple[LabelRuns, NDArray[np.float32]]:
    """Return the segments of flat reads, and for each base the posterior probability of its label.

    One batch is decoded while the network scores the next.
    """
    n = len(codes)
    found = _Labelled(
        np.zeros(n, dtype=np.uint8), np.zeros(n, dtype=np.float32), np.zeros(n, dtype=np.bool_)
    )
    lengths = np.diff(offsets)
    crf = model.network.crf()
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder:
        for reads in batches.length_buckets(
            lengths, np.arange(len(lengths)), tokens=_BATCH_TOKENS, generator=None
        ):
            padded, widths = batches.padded_codes(codes, offsets, reads)
            logits = _scores(model, padded)
            waiting.append(
                decoder.submit(_decode, model, crf, (logits, widths), offsets[reads], found)
            )
            if len(waiting) > _AHEAD:
                waiting.popleft().result()
        for task in waiting:
            task.result()
    return collapse(found.labels, offsets, found.begins), found.confidence


def _reach(config: ConvNetwork | ResidualNetwork) -> int:
    """How far, in bases to either side, a score depends on the read.

    For LSTM and attention a guess, see `_scores`.
    """
    if isinstance(config, ResidualNetwork):
        return config.stem_kernel // 2 + config.kernel // 2 * sum(config.dilation_rates)
    if config.lstm_layers or config.attention_heads:
        return _FAR_CONTEXT // 2
    shapes = zip(config.conv_kernel_sizes, config.dilation_rates, strict=True)
    return sum(kernel // 2 * dilation for kernel, dilation in shapes)


def _scores(model: ReadModel, padded: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return logits of a padded batch; reads beyond the window's length are scored piece by piece.

    Pieces overlap by more than twice what the network can see, and of each only the middle is
    kept, so scores are those of the whole read. Not so for networks with LSTM or attention, which
    see all of a read: for them the pieces overlap by ``2 * _FAR_CONTEXT`` bases, and far parts of
    a long read no longer influence each other.
    """
    window = _WINDOW
    if isinstance(model.config, ConvNetwork) and model.config.attention_heads:
        window = min(window, _ATTENTION_WINDOW)
    width = padded.shape[1]
    if width <= window:
        return np.asarray(model.logits(padded))
    context = 2 * _reach(model.config) + 1
    step = max(window - 2 * context, context)
    pieces = []
    for first in range(0, width, step):
        left, right = max(0, first - context), min(width, first + step + context)
        piece = np.asarray(model.logits(padded[:, left:right]))
        pieces.append(piece[:, first - left : first - left + step])
    return np.concatenate(pieces, axis=1)


def _decode(
    model: ReadModel,
    crf: Crf,
    batch: tuple[NDArray[np.float32], NDArray[np.int64]],
    firsts: NDArray[np.int64],
    found: _Labelled,
) -> None:
    """Label the reads of one batch, which begin at ``firsts`` in the flat arrays of ``found``.

    The batch has logits and lengths.

    The best path of the label chain is an upper bound of every parse. Where it can be taken under
    the grammar at no cost, which is the rule, it is the best parse, and only the other reads are
    parsed.
    """
    logits, widths = batch
    columns = np.arange(logits.shape[1])
    real = columns < widths[:, None]
    places = (firsts[:, None] + columns)[real]
    paths = viterbi(logits, widths, crf)
    if model.graph is not None:
        odd = np.flatnonzero(~_is_legal(model.graph, paths[real], widths))
        parsed = parse(logits[odd], widths[odd], model.graph, crf)
        begins = np.concatenate([[0], parsed.ends[:-1]])
        begins[parsed.offsets[:-1]] = 0
        parts = model.graph.labels[parsed.nodes]
        paths[odd[:, None], columns] = 0  # past the end of a read, nothing
        paths[np.isin(np.arange(len(paths)), odd)[:, None] & real] = np.repeat(
            parts, parsed.ends - begins
        )
        is_insert = parts == model.protocol.labels.index(
            CDNA
        )  # a random end and an insert are one stretch
        owners = np.repeat(odd, np.diff(parsed.offsets))
        found.begins[(firsts[owners] + begins)[~is_insert]] = True
    found.labels[places] = paths[real]
    posterior = marginals(logits, widths, crf)[real]
    found.confidence[places] = posterior[np.arange(len(places)), found.labels[places]]


def _is_legal(
    graph: Graph, labels: NDArray[np.uint8], widths: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell for each read whether its labels are a parse without cost, of legal lengths.

    Labels are flat.
    """
    runs = collapse(labels, np.concatenate([[0], np.cumsum(widths)]))
    names, sizes, bounds = (
        runs.labels.tolist(),
        (runs.ends - runs.starts).tolist(),
        runs.offsets.tolist(),
    )
    legal = _limits_of(tuple(tuple(part.tolist()) for part in graph))
    return np.array(
        [
            any(
                all(
                    low <= size <= high
                    for size, (low, high) in zip(sizes[a:b], limits, strict=True)
                )
                for limits in legal(tuple(names[a:b]))
            )
            for a, b in itertools.pairwise(bounds)
        ],
        dtype=np.bool_,
    )


_Limits = tuple[tuple[int, int], ...]  # shortest and longest length of every segment of a read


@lru_cache(maxsize=8)
def _limits_of(
    values: tuple[tuple[float, ...], ...],
) -> Callable[[tuple[int, ...]], tuple[_Limits, ...]]:
    """Return a function from labels of a read's runs to the limits of all free parses.

    ``values`` are those of a ``Graph``, as tuples since they are remembered. A run is one node.
    """
    graph = Graph(*(np.array(part) for part in values))
    n_nodes = len(graph.labels)
    spans = [
        slice(int(graph.edge_offsets[node]), int(graph.edge_offsets[node + 1]))
        for node in range(n_nodes)
    ]
    before = [
        graph.edges[span][graph.costs[span] == 0].astype(np.int64).tolist() for span in spans
    ]

    @lru_cache(maxsize=10_000)
    def limits(labels: tuple[int, ...]) -> tuple[_Limits, ...]:
        paths: list[tuple[int, ...]] = [
            (node,)
            for node in range(n_nodes)
            if graph.labels[node] == labels[0] and not graph.first_costs[node]
        ]
        for label in labels[1:]:
            nexts = [node for node in range(n_nodes) if graph.labels[node] == label]
            paths = [
                (*path, node) for path in paths for node in nexts if path[-1] in before[node]
            ][:_MOST_PARSES]
        whole = [path for path in paths if not graph.last_costs[path[-1]]]
        return tuple(
            tuple((int(graph.shortest[node]), int(graph.longest[node])) for node in path)
            for path in whole
        )

    return limits


def _segments(
    runs: LabelRuns, offsets: Offsets, confidence: NDArray[np.float32], names: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Write the runs of every read as segments, with the mean confidence of their bases."""
    first = np.repeat(offsets[:-1], np.diff(runs.offsets)) + runs.starts
    # in double precision: a cDNA of a hundred thousand bases would lose the fourth digit
    sums = np.add.reduceat(confidence, first, dtype=np.float64) if len(first) else np.zeros(0)
    means = sums / (runs.ends - runs.starts)
    rows = [
        {"label": names[label], "start": start, "end": end, "confidence": mean}
        for label, start, end, mean in zip(
            runs.labels.tolist(),
            runs.starts.tolist(),
            runs.ends.tolist(),
            means.tolist(),
            strict=True,
        )
    ]
    return [rows[runs.of(read)] for read in range(len(offsets) - 1)]


def _fragments(runs: LabelRuns, found: Sequence[Architecture]) -> list[list[dict[str, Any]]]:
    """Write the molecules of every read with their places in it, in the order of the read."""
    answer = []
    for read, architecture in enumerate(found):
        base = int(runs.offsets[read])
        molecules = [(one, True) for one in architecture.fragments] + [
            (one, False) for one in architecture.incomplete
        ]
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
