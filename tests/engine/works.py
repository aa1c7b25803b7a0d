"""Commands of all families on data of a few chunks."""

from dataclasses import dataclass
from pathlib import Path

#: Where each kind of work says how many rows a chunk has.
CHUNK_SIZES = {
    "seqfoundry.families.reads.annotate:CHUNK": 5,
    "seqfoundry.families.copynumber.data:CHUNK": 3,
    "seqfoundry.families.vdj.data:CHUNK": 70,
    "seqfoundry.families.enhancer.data:CHUNK": 40,
    "seqfoundry.families.enhancer.tasks.effects:CHUNK": 6,
    "seqfoundry.families.enhancer.tasks.effects:EXPLAINED": 2,
}


@dataclass(frozen=True)
class Work:
    """A command of a family on data of a few chunks."""

    name: str
    words: tuple[str, str]
    source: Path
    model: str
    options: tuple[str, ...] = ()

    def command(self, out: Path, *options: str) -> list[str]:
        words = [str(self.source), "--model", self.model, "--out", str(out)]
        return [*self.words, *words, *self.options, *options]


WORKS = ("reads", "copynumber", "vdj", "activity", "variants", "mutagenesis", "attribution")
