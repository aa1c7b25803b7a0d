"""Decoding under the protocol's grammar: the best way to read a sequence as molecules, random ends and their joints.

A read is cut into segments, each an element of a valid structure in one orientation or a piece of *hub* (cDNA outside
molecules: flanks, spacers, anything that fits nowhere). Elements follow each other as in a valid structure; leaving or
entering a molecule in its middle costs ``penalty``, so that odd and truncated reads stay readable. Segments have
shortest and longest lengths. The score is that of the label chain (``seqmodels.reads.crf``), so without penalties and
limits the answer is its most likely path. A semi-Markov Viterbi recursion (Sarawagi and Cohen 2004, NIPS 17) in which
the maximum over lengths is a sliding-window maximum: time goes with bases times elements, whatever the lengths.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqmodels.reads.config import DecodeConfig
from seqmodels.reads.crf import Crf, compiled, over_reads
from seqmodels.reads.protocol import CDNA, Protocol, Segment

Array = NDArray[Any]
HUB = 0
UNLIMITED = 1 << 40  # longest length of segments without one


class Graph(NamedTuple):
    """Segments as nodes; node 0 is the hub. ``edges`` has the nodes that may come before each, in ``edge_offsets``.

    ``costs`` are what an edge takes off the score; ``first_costs`` and ``last_costs`` the same for a read that begins
    or ends with a node. ``shortest`` and ``longest`` are lengths in bases.
    """

    labels: NDArray[np.int64]
    shortest: NDArray[np.int64]
    longest: NDArray[np.int64]
    edges: NDArray[np.int64]
    edge_offsets: NDArray[np.int64]
    costs: NDArray[np.float64]
    first_costs: NDArray[np.float64]
    last_costs: NDArray[np.float64]


def build_graph(protocol: Protocol, config: DecodeConfig) -> Graph:
    """Lay out the valid structures of a protocol, in both orientations, as a graph of segments."""
    segments = {segment.name: segment for segment in protocol.segments}
    number = {name: index for index, name in enumerate(protocol.labels)}
    nodes: dict[tuple[int, str, int], int] = {}
    edges: dict[tuple[int, int], float] = {}
    firsts, lasts = set(), set()
    for structure in protocol.valid_structures:
        for turn, names in enumerate((structure, structure[::-1])):
            path = []
            for place, name in enumerate(names):
                copy = names[:place].count(name)  # a name may stand twice in a structure
                path.append(nodes.setdefault((turn, name, copy), len(nodes) + 1))
            edges.update(dict.fromkeys(itertools.pairwise(path), 0.0))
            firsts.add(path[0])
            lasts.add(path[-1])
    everything = set(nodes.values())
    for node in everything:
        edges[HUB, node] = 0.0 if node in firsts else config.penalty
        edges[node, HUB] = 0.0 if node in lasts else config.penalty
    edges |= {(last, first): 0.0 for last in lasts for first in firsts}  # neighbours without a spacer
    labels = np.array([number[CDNA]] + [number[name] for _, name, _ in nodes])
    limits = [(1, UNLIMITED)] + [_limits(segments[name], config) for _, name, _ in nodes]
    before = [sorted(source for source, target in edges if target == node) for node in range(len(labels))]
    return Graph(
        labels=labels,
        shortest=np.array([low for low, _ in limits]),
        longest=np.array([high for _, high in limits]),
        edges=np.array([source for sources in before for source in sources]),
        edge_offsets=np.cumsum([0] + [len(sources) for sources in before]),
        costs=np.array([edges[source, node] for node, sources in enumerate(before) for source in sources]),
        first_costs=np.array([0.0 if n == HUB or n in firsts else config.penalty for n in range(len(labels))]),
        last_costs=np.array([0.0 if n == HUB or n in lasts else config.penalty for n in range(len(labels))]),
    )


class _Table(NamedTuple):
    """Work space of one read; all but the window's bounds have shape ``(length + 1, n_nodes)``.

    Attributes
    ----------
    sums
        Score of staying in a node from the read's begin to a place.
    opened, source
        Best score of all that comes before a segment which begins at a place, and the node before it.
    closed, begun
        Best score of a parse whose last segment ends at a place, and where that segment began.
    window, head, tail
        For each node the begins that may still win, falling in worth, and the bounds of this queue.
    """

    sums: Array
    opened: Array
    source: Array
    closed: Array
    begun: Array
    window: Array
    head: Array
    tail: Array


def _limits(segment: Segment, config: DecodeConfig) -> tuple[int, int]:
    """Shortest and longest length of a segment, from its pattern."""
    if segment.kind == "insert":
        return config.min_insert, UNLIMITED
    if segment.length is None:
        return 1, UNLIMITED
    low, high = config.literal_range if segment.kind == "literal" else config.random_range
    return max(1, int(np.floor(low * segment.length))), int(np.ceil(high * segment.length))


@compiled
def _new_table(logits: Array, graph: Graph, crf: Crf) -> _Table:
    """Make the work space of a read, with the score of staying in every node."""
    length, n_nodes = logits.shape[0], graph.labels.shape[0]
    sums = np.zeros((length + 1, n_nodes))
    opened = np.full((length + 1, n_nodes), -np.inf)
    for node in range(n_nodes):
        label = graph.labels[node]
        opened[0, node] = crf.start[label] - graph.first_costs[node]
        for place in range(length):
            sums[place + 1, node] = sums[place, node] + logits[place, label] + crf.transitions[label, label]
    return _Table(
        sums,
        opened,
        np.full((length + 1, n_nodes), -1, np.int16),
        np.full((length + 1, n_nodes), -np.inf),
        np.zeros((length + 1, n_nodes), np.int32),
        np.zeros((length + 1, n_nodes), np.int32),
        np.zeros(n_nodes, np.int64),
        np.zeros(n_nodes, np.int64),
    )


@compiled
def _close_segment(place: int, node: int, table: _Table, graph: Graph, stay: float) -> None:
    """Find the best segment of ``node`` that ends at ``place``: the maximum over its begins in a sliding window."""
    newest = place - graph.shortest[node]
    if newest < 0:
        return
    worth = table.opened[newest, node] - table.sums[newest, node]
    if worth > -np.inf:
        while table.tail[node] > table.head[node]:
            other = table.window[table.tail[node] - 1, node]
            if table.opened[other, node] - table.sums[other, node] >= worth:
                break
            table.tail[node] -= 1
        table.window[table.tail[node], node] = newest
        table.tail[node] += 1
    while table.tail[node] > table.head[node] and place - table.window[table.head[node], node] > graph.longest[node]:
        table.head[node] += 1
    if table.tail[node] > table.head[node]:
        best = table.window[table.head[node], node]
        # n bases have n - 1 steps within the label
        table.closed[place, node] = table.opened[best, node] - table.sums[best, node] + table.sums[place, node] - stay
        table.begun[place, node] = best


@compiled
def _open_segment(place: int, node: int, table: _Table, graph: Graph, crf: Crf) -> None:
    """Find the best node before a segment of ``node`` that begins at ``place``."""
    for edge in range(graph.edge_offsets[node], graph.edge_offsets[node + 1]):
        other = graph.edges[edge]
        step = crf.transitions[graph.labels[other], graph.labels[node]] - graph.costs[edge]
        if table.closed[place, other] + step > table.opened[place, node]:
            table.opened[place, node] = table.closed[place, other] + step
            table.source[place, node] = other


@compiled
def _parse_read(logits: Array, graph: Graph, crf: Crf, nodes: Array, ends: Array) -> int:
    """Parse one read; write its segments' nodes and ends, and return their number (0: there is no parse)."""
    length, n_nodes = logits.shape[0], graph.labels.shape[0]
    table = _new_table(logits, graph, crf)
    for place in range(1, length + 1):
        for node in range(n_nodes):
            label = graph.labels[node]
            _close_segment(place, node, table, graph, crf.transitions[label, label])
        if place < length:
            for node in range(n_nodes):
                _open_segment(place, node, table, graph, crf)
    last, best = -1, -np.inf
    for node in range(n_nodes):
        score = table.closed[length, node] + crf.end[graph.labels[node]] - graph.last_costs[node]
        if score > best:
            last, best = node, score
    count, place, node = 0, length, last
    while place > 0 and node >= 0:
        nodes[count], ends[count] = node, place
        count += 1
        begun = table.begun[place, node]
        place, node = begun, table.source[begun, node]
    nodes[:count] = nodes[:count][::-1].copy()
    ends[:count] = ends[:count][::-1].copy()
    return count


@compiled
def _parse_reads(  # noqa: PLR0913 - a kernel takes its arrays one by one
    first: int,
    last: int,
    logits: Array,
    lengths: Array,
    graph: Graph,
    crf: Crf,
    nodes: Array,
    ends: Array,
    counts: Array,
) -> None:
    """Parse the reads ``first`` to ``last`` (excluded) of a padded batch."""
    for read in range(first, last):
        counts[read] = _parse_read(logits[read, : lengths[read]], graph, crf, nodes[read], ends[read])


class Parses(NamedTuple):
    """Segments of a batch of reads, one after another in read order; read ``i`` has ``offsets[i]:offsets[i + 1]``.

    ``nodes`` are those of the graph, ``ends`` positions in the read, where the next segment begins.
    """

    nodes: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]


def parse(logits: Array, lengths: Array, graph: Graph, crf: Crf) -> Parses:
    """Parse a padded batch; segments tile every read, an empty read has none.

    Parameters
    ----------
    logits
        Scores of bases, shape ``(n, length, n_labels)``.
    lengths
        Bases of every read, shape ``(n,)``.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    shape = logits.shape[:2]
    nodes, ends, counts = np.zeros(shape, np.int16), np.zeros(shape, np.int32), np.zeros(len(lengths), np.int64)
    chain = Crf(*(np.ascontiguousarray(part, dtype=np.float64) for part in crf))
    over_reads(_parse_reads, lengths, np.ascontiguousarray(logits), lengths, graph, chain, nodes, ends, counts)
    real = np.arange(shape[1]) < counts[:, None]
    return Parses(nodes[real].astype(np.int64), ends[real].astype(np.int64), np.cumsum([0, *counts]))
