"""What jobs know of a model without loading its network: its name and its protocol."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seqfoundry.core.errors import ConfigError, ModelError
from seqfoundry.core.settings.config import build_plain
from seqfoundry.families.reads.protocol.seq_orders import CDNA, Protocol, Segment


@dataclass(frozen=True)
class Serving:
    """What annotation must know of a model.

    Parameters
    ----------
    registered_name
        Its name in the registry; it stands in every table.
    protocol
        The library that it labels.
    """

    registered_name: str
    protocol: Protocol

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the segments that the model tells apart."""
        return self.protocol.labels

    @property
    def barcodes(self) -> tuple[str, ...]:
        """Names of the segments that together name a cell."""
        return self.protocol.barcodes

    @property
    def umis(self) -> tuple[str, ...]:
        """Names of the segments that together are the molecule's UMI."""
        return self.protocol.umis

    @property
    def insert(self) -> str:
        """Name of the segment that is the molecule itself."""
        return CDNA

    @property
    def strand(self) -> str:
        """Sense of the cDNA in a ``+`` read: ``fwd`` (that of the transcript) or ``rev``."""
        return self.protocol.strand

    @cached_property
    def segments(self) -> dict[str, Segment]:
        """Segments of the protocol by name."""
        return {segment.name: segment for segment in self.protocol.segments}

    @cached_property
    def tails(self) -> frozenset[str]:
        """Names of the poly-A or poly-T segments."""
        return frozenset(name for name, segment in self.segments.items() if segment.kind == "tail")

    @cached_property
    def lengths(self) -> dict[str, int]:
        """Bases of every segment whose length the protocol fixes."""
        return {
            name: segment.length
            for name, segment in self.segments.items()
            if segment.length is not None
        }


def read_serving(folder: Path) -> Serving:
    """Read the name and the protocol of a model folder.

    Raises
    ------
    ModelError
        If ``served.json`` or ``model.json`` is missing or damaged.
    """
    try:
        served = json.loads((folder / "served.json").read_text(encoding="utf-8"))
        shape = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        registered_name = str(served["registered_name"])
        protocol_values = shape["protocol"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{folder}: must be a whole model folder of the family reads, got: {error}"
        ) from None
    where = str(folder / "model.json")
    try:
        protocol = build_plain(protocol_values, Protocol, origin=lambda _: where)
    except ConfigError as error:
        raise ModelError(str(error)) from None
    return Serving(registered_name, protocol)
