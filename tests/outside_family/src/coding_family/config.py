"""Settings of the family; every default stands in ``params/``."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from seqfoundry.core.errors import ConfigError
from seqfoundry.core.settings.config import Gate

Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of a run.

    ``sequences`` of ``codons`` codons are simulated, half of which code: their codons are drawn
    from a usage that the seed decides, with ``bias`` between 0 (none) and 1.
    """

    seed: int
    sequences: Positive
    codons: Positive
    bias: Annotated[float, Field(ge=0, le=1)]
    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    headline: str
    gates: dict[str, Gate]

    def __post_init__(self) -> None:
        if self.headline not in self.gates:
            raise ConfigError(f"headline must be one of {sorted(self.gates)}, got {self.headline}")
