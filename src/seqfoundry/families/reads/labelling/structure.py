"""Labels of bases -> segments -> architecture of a read.

Valid, invalid, or several molecules in one.

A read's labels collapse to runs. Every valid structure of the protocol is looked for in both
orientations as an exact, contiguous series of runs (cDNA at the ends apart), longest first, of
equal ones from the left, without overlap except for one shared end, where two adapters of
neighbouring molecules have grown together. One match and nothing left over is a valid read. A
molecule counts only if its adapters are there: the pattern of every literal segment lies within
``adapter_distance`` edits per base (Levenshtein 1966) somewhere in the segment and
``adapter_slack`` bases around it.

``parse`` reads the segments out of a network's scores under the same structures: elements follow
each other as in one of them, or are *hub* (cDNA outside molecules, and whatever fits nowhere);
leaving or entering a molecule in its middle costs ``penalty``, so that odd and truncated reads
stay readable; segments have shortest and longest lengths. The score is that of the label chain
(``reads.labelling.crf``), so without penalties and limits the answer is its most likely path. It
is a semi-Markov Viterbi recursion (Sarawagi and Cohen 2004, NIPS 17) in which the maximum over
lengths is a sliding-window maximum: time goes with bases times elements, whatever the lengths.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import edlib
import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.core.dna import Codes, Offsets, decode, reverse_complement_text
from seqfoundry.core.errors import ConfigError
from seqfoundry.families.reads.config import DecodeConfig
from seqfoundry.families.reads.data import LabelRuns
from seqfoundry.families.reads.labelling.crf import Crf, over_reads
from seqfoundry.families.reads.protocol.seq_orders import CDNA, Protocol, Segment

Array = NDArray[Any]
FORWARD, REVERSE = "+", "-"
HUB = 0
UNLIMITED = 1 << 40  # longest length of segments without one


@dataclass(frozen=True, slots=True)
class Fragment:
    """A molecule found in a read.

    Its runs ``first`` to ``last`` (included) and its orientation, + or -.
    """

    first: int
    last: int
    orientation: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a read is made of: the verdict, why, and the molecules in it in the order of the read.

    ``incomplete`` are molecules of which an end is missing or an adapter is broken, but which have
    their barcodes and cDNA; they make no read valid.
    """

    is_valid: bool
    reason: str
    fragments: tuple[Fragment, ...]
    incomplete: tuple[Fragment, ...] = ()

    @property
    def orientation(self) -> str:
        """Orientation of a valid read, empty for any other."""
        return self.fragments[0].orientation if self.is_valid else ""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Labels of a structure without cDNA at its ends, and whether there was any.

    It then belongs to the molecule.
    """

    codes: tuple[int, ...]
    orientation: str
    begins_in_cdna: bool
    ends_in_cdna: bool


class ReadGrammar:
    """Recognises the valid structures of one protocol in the runs of a read.

    Remembers what it has seen last.

    Raises
    ------
    ConfigError
        If a valid structure is nothing but cDNA, which every read would have.
    """

    def __init__(self, protocol: Protocol, adapter_distance: float, adapter_slack: int) -> None:
        self.protocol, self.names = protocol, protocol.labels
        self.adapter_distance, self.adapter_slack = adapter_distance, adapter_slack
        self.adapters = {
            protocol.labels.index(one.name): one.pattern
            for one in protocol.segments
            if one.kind == "literal"
        }
        number = {name: index for index, name in enumerate(self.names)}
        self._cdna = number.get(CDNA, -1)
        patterns: dict[tuple[int, ...], _Pattern] = {}
        for structure in protocol.valid_structures:
            # equal neighbours are one run in a read
            whole = tuple(
                code for code, _ in itertools.groupby(number[name] for name in structure)
            )
            codes, begins, ends = (
                self._strip(whole),
                whole[0] == self._cdna,
                whole[-1] == self._cdna,
            )
            if not codes:
                raise ConfigError(
                    f"{protocol.model}: valid_structures must have a segment beside {CDNA}, got "
                    "none"
                )
            # of equal ones the first counts, so a structure that is its own reverse is forward
            patterns.setdefault(codes, _Pattern(codes, FORWARD, begins, ends))
            patterns.setdefault(codes[::-1], _Pattern(codes[::-1], REVERSE, ends, begins))
        self._patterns = list(patterns.values())
        self._parts = self._incomplete_patterns({*protocol.barcodes, CDNA})
        self.recognise = lru_cache(maxsize=10_000)(self._recognise)

    def _incomplete_patterns(self, needed: set[str]) -> list[_Pattern]:
        """List what is left of a structure without one end or both.

        All ``needed`` segments are there.
        """
        parts: dict[tuple[int, ...], _Pattern] = {}
        for pattern in self._patterns:
            codes = (
                (self._cdna,) * pattern.begins_in_cdna
                + pattern.codes
                + (self._cdna,) * pattern.ends_in_cdna
            )
            for first, last in itertools.combinations(range(len(codes) + 1), 2):
                part = codes[first:last]
                core = self._strip(part)
                if (
                    core
                    and core != pattern.codes
                    and needed <= {self.names[code] for code in part}
                ):
                    begins, ends = part[0] == self._cdna, part[-1] == self._cdna
                    parts.setdefault(core, _Pattern(core, pattern.orientation, begins, ends))
        return list(parts.values())

    def _strip(self, codes: tuple[int, ...]) -> tuple[int, ...]:
        """Cut cDNA from both ends; a structure may end in cDNA, and flanks are cDNA too."""
        first, last = 0, len(codes)
        while first < last and codes[first] == self._cdna:
            first += 1
        while last > first and codes[last - 1] == self._cdna:
            last -= 1
        return codes[first:last]

    def _recognise(self, runs: tuple[int, ...]) -> Architecture:
        """Judge one read by the labels of its runs."""
        if not runs:
            return Architecture(False, "empty read", ())
        found = self._matches(runs, self._patterns, ())
        parts = tuple(
            x
            for x in self._matches(runs, self._parts, found)
            if self._cdna in runs[x.first : x.last + 1]
        )
        covered = {index for match in found for index in range(match.first, match.last + 1)}
        extra = [
            self.names[code]
            for index, code in enumerate(runs)
            if index not in covered and code != self._cdna
        ]
        if not found:
            return Architecture(
                False,
                f"Unexpected pattern: [{'_'.join(self.names[code] for code in runs)}]",
                (),
                parts,
            )
        if len(found) == 1 and not extra:
            return Architecture(True, "valid", tuple(found))
        forward = sum(match.orientation == FORWARD for match in found)
        what = f"concatenated reads x{len(found)} (+:{forward}, -:{len(found) - forward})"
        if len(found) == 1:  # unlike the reference, which calls it "concatenated reads x1"
            what = f"one molecule ({found[0].orientation})"
        rest = f" - extra segments: [{'_'.join(extra)}]" if extra else ""
        return Architecture(False, what + rest, tuple(found), parts)

    def _matches(
        self, runs: tuple[int, ...], patterns: Sequence[_Pattern], taken: Sequence[Fragment]
    ) -> list[Fragment]:
        """Choose matches greedily, longest first, then from the left.

        Neighbours may share one end.
        """
        candidates = [
            (-len(pattern.codes), first, rank)
            for rank, pattern in enumerate(patterns)
            for first in range(len(runs) - len(pattern.codes) + 1)
            if runs[first : first + len(pattern.codes)] == pattern.codes
        ]
        chosen: list[tuple[int, int, int]] = []
        for negative, first, rank in sorted(candidates):
            last = first - negative - 1
            # a match of one run has no end to share: it would lie within its neighbour
            if any(first <= one.last and last >= one.first for one in taken):
                continue
            if all(
                first > b or last < a or (first < last and a < b and (first == b or last == a))
                for a, b, _ in chosen
            ):
                chosen.append((first, last, rank))
        return [
            self._fragment(runs, first, last, patterns[rank])
            for first, last, rank in sorted(chosen)
        ]

    def _fragment(
        self, runs: tuple[int, ...], first: int, last: int, pattern: _Pattern
    ) -> Fragment:
        """Add the cDNA beside a match where its structure begins or ends in cDNA."""
        first -= pattern.begins_in_cdna and first > 0 and runs[first - 1] == self._cdna
        last += pattern.ends_in_cdna and last + 1 < len(runs) and runs[last + 1] == self._cdna
        return Fragment(first, last, pattern.orientation)


def architectures(
    runs: LabelRuns, codes: Codes, reads: Offsets, grammar: ReadGrammar
) -> list[Architecture]:
    """Judge every read of a batch.

    ``codes`` and ``reads`` are its flat bases and their offsets.
    """
    labels = runs.labels.tolist()
    found = [
        grammar.recognise(tuple(labels[a:b])) for a, b in itertools.pairwise(runs.offsets.tolist())
    ]
    for read, fragment, reason in _broken_adapters(runs, codes, reads, grammar, found):
        whole = tuple(one for one in found[read].fragments if one is not fragment)
        found[read] = Architecture(False, reason, whole, (*found[read].incomplete, fragment))
    return found


def _broken_adapters(
    runs: LabelRuns,
    codes: Codes,
    reads: Offsets,
    grammar: ReadGrammar,
    found: Sequence[Architecture],
) -> list[tuple[int, Fragment, str]]:
    """List the molecules with an adapter too far from its pattern.

    Read, molecule, what is wrong with it.
    """
    broken = []
    for read, architecture in enumerate(found):
        base = int(runs.offsets[read])
        for fragment in architecture.fragments:
            for run in range(fragment.first, fragment.last + 1):
                label = int(runs.labels[base + run])
                if label not in grammar.adapters:
                    continue
                pattern = grammar.adapters[label]
                turned = (
                    reverse_complement_text(pattern)
                    if fragment.orientation == REVERSE
                    else pattern
                )
                start = max(int(runs.starts[base + run]) - grammar.adapter_slack, 0) + int(
                    reads[read]
                )
                end = min(
                    int(reads[read] + runs.ends[base + run]) + grammar.adapter_slack,
                    int(reads[read + 1]),
                )
                distance = edlib.align(turned, decode(codes[start:end]), mode="HW")["editDistance"]
                if distance > grammar.adapter_distance * len(pattern):
                    reason = (
                        f"{grammar.names[label]} is {distance} edits from its {len(pattern)} bases"
                    )
                    broken.append((read, fragment, reason))
                    break
    return broken


class Graph(NamedTuple):
    """Segments as nodes, node 0 the hub.

    ``costs`` are taken off the score where a read takes an edge.

    ``edges`` has the nodes that may come before each, in ``edge_offsets``; ``first_costs`` and
    ``last_costs`` are for a read that begins or ends with a node; ``shortest`` and ``longest`` are
    lengths in bases.
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
    for node in nodes.values():
        edges[HUB, node] = 0.0 if node in firsts else config.penalty
        edges[node, HUB] = 0.0 if node in lasts else config.penalty
    edges |= {
        (last, first): 0.0 for last in lasts for first in firsts
    }  # neighbours without a spacer
    labels = np.array([number[CDNA]] + [number[name] for _, name, _ in nodes])
    limits = [(1, UNLIMITED)] + [_limits(segments[name], config) for _, name, _ in nodes]
    before = [
        sorted(source for source, target in edges if target == node) for node in range(len(labels))
    ]
    return Graph(
        labels=labels,
        shortest=np.array([low for low, _ in limits]),
        longest=np.array([high for _, high in limits]),
        edges=np.array([source for sources in before for source in sources]),
        edge_offsets=np.cumsum([0] + [len(sources) for sources in before]),
        costs=np.array(
            [edges[source, node] for node, sources in enumerate(before) for source in sources]
        ),
        first_costs=np.array(
            [0.0 if n == HUB or n in firsts else config.penalty for n in range(len(labels))]
        ),
        last_costs=np.array(
            [0.0 if n == HUB or n in lasts else config.penalty for n in range(len(labels))]
        ),
    )


class _Table(NamedTuple):
    """Work space of one read; all but the window's bounds have shape ``(length + 1, n_nodes)``."""

    sums: Array  # score of staying in a node from the read's begin to a place
    opened: Array  # best score of all that comes before a segment which begins at a place
    source: Array  # and the node before it
    closed: Array  # best score of a parse whose last segment ends at a place
    begun: Array  # and where that segment began
    window: Array  # the begins that may still win, falling in worth: a queue for each node
    head: Array  # its first, shape (n_nodes,)
    tail: Array  # and the one after its last


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
    sums, opened = np.zeros((length + 1, n_nodes)), np.full((length + 1, n_nodes), -np.inf)
    for node in range(n_nodes):
        label = graph.labels[node]
        opened[0, node] = crf.start[label] - graph.first_costs[node]
        for place in range(length):
            sums[place + 1, node] = (
                sums[place, node] + logits[place, label] + crf.transitions[label, label]
            )
    closed, source = (
        np.full((length + 1, n_nodes), -np.inf),
        np.full((length + 1, n_nodes), -1, np.int16),
    )
    begun, window = (
        np.zeros((length + 1, n_nodes), np.int32),
        np.zeros((length + 1, n_nodes), np.int32),
    )
    return _Table(
        sums,
        opened,
        source,
        closed,
        begun,
        window,
        np.zeros(n_nodes, np.int64),
        np.zeros(n_nodes, np.int64),
    )


@compiled
def _close_segment(place: int, node: int, table: _Table, graph: Graph, stay: float) -> None:
    """Find the best segment of ``node`` that ends at ``place``.

    The maximum over its begins in a sliding window.
    """
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
    while (
        table.tail[node] > table.head[node]
        and place - table.window[table.head[node], node] > graph.longest[node]
    ):
        table.head[node] += 1
    if table.tail[node] > table.head[node]:
        best = table.window[table.head[node], node]
        # n bases have n - 1 steps within the label
        table.closed[place, node] = (
            table.opened[best, node] - table.sums[best, node] + table.sums[place, node] - stay
        )
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
    """Parse one read; write its segments' nodes and ends, and return their number (0.

    There is no parse).
    """
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
    nodes[:count], ends[:count] = nodes[:count][::-1].copy(), ends[:count][::-1].copy()
    return count


@compiled
def _parse_reads(
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
        counts[read] = _parse_read(
            logits[read, : lengths[read]], graph, crf, nodes[read], ends[read]
        )


class Parses(NamedTuple):
    """Nodes and ends of the segments of a batch, in read order.

    Read ``i`` has ``offsets[i]:offsets[i + 1]``.
    """

    nodes: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]


def parse(logits: Array, lengths: Array, graph: Graph, crf: Crf) -> Parses:
    """Parse a padded batch, logits ``(n, length, n_labels)`` and lengths ``(n,)``.

    Segments tile every read.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    shape = logits.shape[:2]
    nodes, ends, counts = (
        np.zeros(shape, np.int16),
        np.zeros(shape, np.int32),
        np.zeros(len(lengths), np.int64),
    )
    chain = Crf(*(np.ascontiguousarray(part, dtype=np.float64) for part in crf))
    over_reads(
        _parse_reads,
        lengths,
        np.ascontiguousarray(logits),
        lengths,
        graph,
        chain,
        nodes,
        ends,
        counts,
    )
    real = np.arange(shape[1]) < counts[:, None]
    return Parses(
        nodes[real].astype(np.int64), ends[real].astype(np.int64), np.cumsum([0, *counts])
    )
