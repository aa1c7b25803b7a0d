"""Decoding under the grammar.

Against all segmentations of short reads, and against the plain chain.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.families.reads.config import DecodeConfig
from seqfoundry.families.reads.labelling.crf import Crf, viterbi
from seqfoundry.families.reads.labelling.structure import HUB, Graph, Parses, build_graph
from seqfoundry.families.reads.labelling.structure import parse as parse_batch
from seqfoundry.families.reads.protocol.seq_orders import read_protocol

SEQ_ORDERS = Path(__file__).parents[3] / "params" / "reads" / "seq_orders.yaml"
LENGTHS = {"literal_range": (0.6, 1.4), "random_range": (0.75, 1.25), "min_insert": 20}
PLAIN = {"grammar": True, "adapter_distance": 0.34, "adapter_slack": 3, **LENGTHS}


def parse(logits: Any, graph: Graph, crf: Crf) -> tuple[Any, Any]:
    """Nodes and ends of one read."""
    found: Parses = parse_batch(logits[None], np.array([len(logits)]), graph, crf)
    return found.nodes, found.ends


def segmentations(length: int, n_nodes: int) -> Any:
    """Every way to cut ``length`` bases into segments of any node: (nodes, ends)."""
    for n_cuts in range(length):
        for cuts in itertools.combinations(range(1, length), n_cuts):
            for nodes in itertools.product(range(n_nodes), repeat=n_cuts + 1):
                yield nodes, (*cuts, length)


def score(nodes: Any, ends: Any, logits: Any, graph: Graph, crf: Crf) -> float:
    """Score of one segmentation, term by term; -inf if it is not legal."""
    starts = (0, *ends[:-1])
    total = crf.start[graph.labels[nodes[0]]] - graph.first_costs[nodes[0]]
    total += crf.end[graph.labels[nodes[-1]]] - graph.last_costs[nodes[-1]]
    for place, (node, start, end) in enumerate(zip(nodes, starts, ends, strict=True)):
        if not graph.shortest[node] <= end - start <= graph.longest[node]:
            return -np.inf
        label = graph.labels[node]
        total += logits[start:end, label].sum() + (end - start - 1) * crf.transitions[label, label]
        if place:
            window = slice(graph.edge_offsets[node], graph.edge_offsets[node + 1])
            before = graph.edges[window].tolist()
            if nodes[place - 1] not in before:
                return -np.inf
            total += crf.transitions[graph.labels[nodes[place - 1]], label]
            total -= graph.costs[window][before.index(nodes[place - 1])]
    return float(total)


def random_graph(rng: np.random.Generator, n_nodes: int, n_labels: int) -> Graph:
    present = rng.random((n_nodes, n_nodes)) < 0.7
    np.fill_diagonal(present, False)
    before = [np.flatnonzero(present[:, node]) for node in range(n_nodes)]
    shortest = rng.integers(1, 3, n_nodes)
    offsets = np.cumsum([0, *(len(sources) for sources in before)])
    return Graph(
        labels=rng.integers(0, n_labels, n_nodes),
        shortest=shortest,
        longest=shortest + rng.integers(0, 3, n_nodes),
        edges=np.concatenate(before).astype(np.int64),
        edge_offsets=offsets,
        costs=rng.random(offsets[-1]),
        first_costs=rng.random(n_nodes),
        last_costs=rng.random(n_nodes),
    )


@given(length=st.integers(1, 6), n_nodes=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_parse_is_the_best_of_all_segmentations(length: int, n_nodes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, n_nodes, 2)
    crf = Crf(rng.normal(size=(2, 2)), rng.normal(size=2), rng.normal(size=2))
    logits = rng.normal(size=(length, 2)).astype(np.float32)
    best = max(
        score(nodes, ends, logits, graph, crf) for nodes, ends in segmentations(length, n_nodes)
    )
    nodes, ends = parse(logits, graph, crf)
    if best == -np.inf:
        assert len(nodes) == 0
    else:
        assert score(tuple(nodes), tuple(ends), logits, graph, crf) == pytest.approx(best)


@pytest.fixture(scope="module")
def graph() -> Graph:
    protocol = read_protocol(SEQ_ORDERS, "10x3p_sc_ont_016")
    return build_graph(protocol, DecodeConfig(penalty=10.0, **PLAIN))


def test_graph_of_the_protocol(graph: Graph) -> None:
    """The hub and six elements for each strand.

    Limits from the patterns (22, 16, 12, tail, cDNA, 30 bases).
    """
    names = read_protocol(SEQ_ORDERS, "10x3p_sc_ont_016").labels
    assert [names[label] for label in graph.labels] == [
        "cDNA",
        "5p",
        "CBC",
        "UMI",
        "polyT",
        "cDNA",
        "3p",
        "3p",
        "cDNA",
        "polyT",
        "UMI",
        "CBC",
        "5p",
    ]
    assert list(zip(graph.shortest[1:7].tolist(), graph.longest[1:5].tolist(), strict=False)) == [
        (13, 31),
        (12, 20),
        (9, 15),
        (1, 1 << 40),
    ]
    assert graph.shortest[5] == 20


def test_without_penalties_and_limits_it_is_the_plain_chain() -> None:
    rng = np.random.default_rng(5)
    n_labels, length = 4, 60
    every = [(a, b) for b in range(n_labels) for a in range(n_labels) if a != b]
    free = Graph(
        labels=np.arange(n_labels),
        shortest=np.ones(n_labels, np.int64),
        longest=np.full(n_labels, 1 << 40),
        edges=np.array([a for a, _ in every]),
        edge_offsets=np.arange(0, len(every) + 1, n_labels - 1),
        costs=np.zeros(len(every)),
        first_costs=np.zeros(n_labels),
        last_costs=np.zeros(n_labels),
    )
    crf = Crf(
        rng.normal(size=(n_labels, n_labels)), rng.normal(size=n_labels), rng.normal(size=n_labels)
    )
    logits = rng.normal(size=(length, n_labels)).astype(np.float32)
    nodes, ends = parse(logits, free, crf)
    labels = np.repeat(nodes, np.diff([0, *ends]))
    path = viterbi(logits[None], np.array([length]), crf)[0]
    assert labels.tolist() == path.tolist()


def test_segments_tile_the_read(graph: Graph) -> None:
    rng = np.random.default_rng(1)
    crf = Crf(np.zeros((6, 6)), np.zeros(6), np.zeros(6))
    for length in (1, 2, 19, 20, 500):
        nodes, ends = parse(rng.normal(size=(length, 6)).astype(np.float32), graph, crf)
        assert ends[-1] == length
        assert (np.diff([0, *ends]) >= graph.shortest[nodes]).all()
        assert (np.diff([0, *ends]) <= graph.longest[nodes]).all()


def test_empty_read_has_no_segment(graph: Graph) -> None:
    nodes, ends = parse(
        np.zeros((0, 6), np.float32), graph, Crf(np.zeros((6, 6)), np.zeros(6), np.zeros(6))
    )
    assert nodes.tolist() == ends.tolist() == []


def test_a_read_of_nothing_but_cdna_is_hub(graph: Graph) -> None:
    logits = np.full((300, 6), -5.0, np.float32)
    logits[:, 4] = 5.0
    nodes, ends = parse(logits, graph, Crf(np.zeros((6, 6)), np.zeros(6), np.zeros(6)))
    assert nodes.tolist() == [HUB]
    assert ends.tolist() == [300]


def test_reads_of_a_batch_are_parsed_each_by_itself(graph: Graph) -> None:
    rng = np.random.default_rng(3)
    crf = Crf(rng.normal(size=(6, 6)), rng.normal(size=6), rng.normal(size=6))
    lengths = np.array([0, 400, 31, 250])
    logits = rng.normal(size=(4, 400, 6)).astype(np.float32) * 3
    together = parse_batch(logits, lengths, graph, crf)
    for read, length in enumerate(lengths):
        window = slice(together.offsets[read], together.offsets[read + 1])
        nodes, ends = parse(logits[read, :length], graph, crf)
        assert together.nodes[window].tolist() == nodes.tolist()
        assert together.ends[window].tolist() == ends.tolist()
