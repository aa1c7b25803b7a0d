"""Frozen Enformer and Sei.

Published checkpoints in, windows around each sequence, one vector of features out.

Sei's weights are published for academic and research use only, Enformer's under CC BY 4.0
(DeepMind); none is shipped here. Whoever keeps or passes on a model with their weights in it is
bound by these licences.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from seqfoundry.core.dna import COMPLEMENT, encode
from seqfoundry.core.errors import ConfigError, InputError, MissingError
from seqfoundry.families.enhancer.backbones.cache import FeatureCache, Features, Values, collect
from seqfoundry.families.enhancer.backbones.checkpoints import (
    digest_of,
    load_enformer,
    load_sei,
    write_tiny,
)
from seqfoundry.families.enhancer.backbones.trunks import SEI_WINDOW, Enformer, EnformerShape, Sei
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import NOTHING, Codes, Indices
from seqfoundry.families.enhancer.first_block import one_hot

CODE_VERSION = 2  # of what is computed; features of another version are computed again

_LOCUS = re.compile(r"(?:^|:)([^:\s]+)[:_](\d+)[-_](\d+)(?=:|$)")
_COMPLEMENT = torch.tensor(COMPLEMENT)
_COMPRESSED = (".gz", ".bgz", ".bz2", ".zip")
_BASES_AT_ONCE = 1 << 16  # of windows that pass the network together


# ---- genome


class Locus(NamedTuple):
    """Where a sequence comes from.

    Bases ``start`` (from 0) to ``end`` (not included), as in BED.
    """

    chromosome: str
    start: int
    end: int


def locus_of(text: str) -> Locus:
    """Read ``chr1:917699-918199``, ``chr1_917699_918199``, or an id with such a part.

    Raises
    ------
    InputError
        If there is none, or it ends before it starts.
    """
    found = _LOCUS.search(text)
    if not found or int(found[2]) >= int(found[3]):
        raise InputError(
            f"locus: must be chromosome:start-end or chromosome_start_end, got {text!r}"
        )
    return Locus(found[1], int(found[2]), int(found[3]))


class Genome:
    """Plain FASTA from which stretches are read.

    Where each record lies stands in the index of ``samtools faidx`` beside the file, ``.fai``, if
    that is not older; else it is found in one pass. Nothing is written there: the folder may be
    read-only, and several processes may open the file at once.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it has no record, a name twice, or lines of unequal length within a record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise MissingError(f"{path}: must be a FASTA file, got nothing of that name")
        if path.suffix.lower() in _COMPRESSED:
            raise InputError(f"{path}: must be plain FASTA, got a compressed file")
        self._records = _read_index(path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def fetch(self, chromosome: str, start: int, end: int) -> Codes:
        """Read codes of bases ``start`` to ``end``.

        What lies beyond either end of the record is 4.

        Raises
        ------
        InputError
            If there is no such record, or it has a letter that is no nucleotide.
        """
        if chromosome not in self._records:
            raise InputError(
                f"{self.path}: must have a record {chromosome}, got "
                f"{', '.join(list(self._records)[:5])}"
            )
        record = self._records[chromosome]
        made = np.full(end - start, NOTHING, dtype=np.uint8)
        first, last = max(start, 0), min(end, record.rlen)
        if first < last:
            first_line, last_line = first // record.lenc, last // record.lenc
            with self.path.open("rb") as file:
                file.seek(record.offset + first_line * record.lenb + first % record.lenc)
                raw = file.read((last_line - first_line + 1) * record.lenb)
            text = b"".join(raw.split())[: last - first].decode("ascii", "replace")
            made[first - start : last - start] = encode([text])[0]
        return made


def _read_index(path: Path) -> dict[str, Any]:
    """Return pyfaidx's ``IndexRecord`` of every record by name."""
    from pyfaidx import Faidx, FastaIndexingError  # backbones without a genome do not need it

    beside = Path(f"{path}.fai")
    has_index = beside.is_file() and beside.stat().st_mtime >= path.stat().st_mtime
    with tempfile.TemporaryDirectory() as folder:
        index = beside if has_index else Path(folder) / "genome.fai"
        try:
            with Faidx(path, indexname=index) as genome:
                return dict(genome.index)
        except (FastaIndexingError, ValueError) as error:
            if has_index:
                fault = f"{beside}: must be an index of samtools faidx"
            else:
                fault = f"{path}: must be FASTA with lines of equal length and names that differ"
            raise InputError(f"{fault}, got: {error}") from None


# ---- features


class Backbone(nn.Module):
    """A frozen trunk, the window it sees, and which of its outputs are the features of a sequence.

    The sequence, ``seq_len`` codes, stands in the middle of the window. Around it is nothing
    (zeros for Enformer, a quarter of each base for Sei), or the genome (``window: genomic``),
    which also fills the padding. Enformer with ``window: short`` sees the sequence alone, which is
    cheap, and all its positions count; else the positions are those that the sequence touches.
    ``features``: pool (their mean), and of Sei's whole window spline (its 16 splines) or profiles.
    ``average_strands`` reads the reverse complement too; null means as published: Sei both,
    Enformer one.

    Attributes
    ----------
    width
        Features of a sequence.
    window, bins
        Bases that the trunk sees, and the positions whose mean is taken.

    Raises
    ------
    ConfigError
        If the settings do not fit together or the trunk.
    """

    def __init__(self, trunk: Enformer | Sei, config: Config) -> None:
        super().__init__()
        chosen, size = config.backbone, config.seq_len
        self.trunk, self.settings, self.seq_len = trunk, chosen, size
        is_sei = isinstance(trunk, Sei)
        self.both_strands = is_sei if chosen.average_strands is None else chosen.average_strands
        self.pads, self.cuts = config.pad == "center", config.truncate == "center"
        if chosen.features != "pool" and not is_sei:
            raise ConfigError(
                f"backbone.features: must be pool with enformer, got {chosen.features}"
            )
        whole = is_sei or chosen.window != "short"
        full = trunk.shape.window if isinstance(trunk, Enformer) else SEI_WINDOW
        if whole and not full:
            raise ConfigError(
                f"backbone.window: must be short with target_length -1, got {chosen.window}"
            )
        self.window = full if whole else size
        if size > self.window:
            raise ConfigError(
                f"seq_len: must be at most the backbone's window of {self.window} bases, got "
                f"{size}"
            )
        if (chosen.window == "genomic") != bool(chosen.genome):
            raise ConfigError("backbone.genome: must be given with window genomic, and only then")
        self.genome = Genome(Path(chosen.genome)) if chosen.genome else None
        start = self.start = (self.window - size) // 2
        self.bins = slice(start // trunk.stride, -(-(start + size) // trunk.stride))
        self.width = self._width()

    def _width(self) -> int:
        shape = self.trunk.shape
        if isinstance(shape, EnformerShape):
            return 2 * shape.dim
        return {
            "pool": shape.widths[-1],
            "spline": 16 * shape.widths[-1],
            "profiles": shape.profiles,
        }[self.settings.features]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the weights, the same whatever file they came from."""
        return digest_of(self.trunk.state_dict())

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the features of a sequence.

        Equal fingerprints, equal features.
        """
        shape = asdict(self.trunk.shape)
        parts = [
            CODE_VERSION,
            type(self.trunk).__name__,
            shape,
            self.weights,
            self.window,
            self.seq_len,
        ]
        parts += [self.settings.features, self.both_strands, self.settings.cache_dtype]
        parts += [self.genome.digest, self.pads, self.cuts] if self.genome else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def batch(self) -> int:
        """Windows that pass the network together, fewer the longer they are."""
        return max(1, _BASES_AT_ONCE // self.window)

    def embed(self, codes: Codes, loci: Sequence[Locus] | None = None) -> Values:
        """Return features ``(n, width)`` of codes ``(n, seq_len)``; n may be 0.

        ``loci`` say where the flanks are from.

        Raises
        ------
        InputError
            If the codes have another length, or the flanks are genomic and there are no loci.
        """
        if codes.ndim != 2 or codes.shape[1] != self.seq_len:
            raise InputError(
                f"codes: shape must be (sequences, {self.seq_len}), got {codes.shape}"
            )
        if self.genome and (loci is None or len(loci) != len(codes)):
            raise InputError(
                "locus: must be given for every sequence with window genomic, got none"
            )
        made = np.empty((len(codes), self.width), dtype=np.float32)
        device = next(self.trunk.parameters()).device
        with torch.inference_mode():
            for first in range(0, len(codes), self.batch):
                rows = slice(first, first + self.batch)
                forward = torch.from_numpy(
                    self._windows(codes[rows], loci[rows] if loci else ())
                ).to(device)
                total = self._read(forward)
                if self.both_strands:
                    total = (total + self._read(self._turned(forward))) / 2
                made[rows] = total.cpu().numpy()
        return made

    def forward(self, codes: Tensor) -> Tensor:
        """Return features of codes ``(n, seq_len)`` as a tensor on their device."""
        return torch.from_numpy(self.embed(codes.cpu().numpy())).to(codes.device)

    def _read(self, windows: Tensor) -> Tensor:
        """Pass windows of codes through the trunk."""
        if isinstance(self.trunk, Enformer):
            return self.trunk(one_hot(windows).mT, self.bins).mean(dim=1)  # type: ignore[no-any-return]
        x = self.trunk(one_hot(windows, "quarter").mT)
        if self.settings.features == "pool":
            return x[:, :, self.bins].mean(dim=2)  # type: ignore[no-any-return]
        x = self.trunk.splines(x)
        return self.trunk.profiles(x) if self.settings.features == "profiles" else x

    def _windows(self, codes: Codes, loci: Sequence[Locus]) -> Codes:
        made = np.full((len(codes), self.window), NOTHING, dtype=np.uint8)
        if self.genome:
            for row, locus in zip(made, loci, strict=True):
                excess = (
                    locus.end - locus.start - self.seq_len
                )  # at the same place as where the sequence was encoded
                inset = (
                    int(excess / 2) if (self.cuts if excess > 0 else self.pads) else 0
                )  # towards 0, as `inset_of`
                first = locus.start + inset - self.start
                row[:] = self.genome.fetch(locus.chromosome, first, first + self.window)
        inside = made[:, self.start : self.start + self.seq_len]
        np.copyto(inside, codes, where=codes != NOTHING)
        return made

    def _turned(self, windows: Tensor) -> Tensor:
        """Reverse complement.

        The whole window, or without flanks the known bases where they stand.

        So the features of a sequence and of its reverse complement are the same when both strands
        are averaged.
        """
        complement = _COMPLEMENT.to(windows.device)[windows.int()]
        if self.genome:
            return complement.flip(1)
        known = (windows != NOTHING).int()
        first, size = known.argmax(dim=1, keepdim=True), windows.shape[1]
        last = size - 1 - known.flip(1).argmax(dim=1, keepdim=True)
        place = torch.arange(size, device=windows.device)
        source = torch.where((place >= first) & (place <= last), first + last - place, place)
        return complement.gather(1, source)


def load_backbone(config: Config, *, device: torch.device | str = "cpu") -> Backbone:
    """Read the checkpoint that the settings name, of the kind that ``oracle`` says.

    Raises
    ------
    ConfigError
        If none is named, or as `Backbone`.
    MissingError, InputError, ModelError
        As `load_enformer` and `load_sei`.
    """
    chosen = config.backbone
    if config.oracle == "deepstarr_7cell" or bool(chosen.checkpoint) == chosen.tiny:
        raise ConfigError(
            "backbone.checkpoint: must be named for an oracle with a backbone, unless tiny, "
            f"got {chosen.checkpoint or 'none'} for {config.oracle}, tiny {chosen.tiny}"
        )
    if not chosen.tiny:
        return Backbone(load_trunk(config, Path(chosen.checkpoint)), config).to(device)
    kind: Literal["enformer", "sei"] = "enformer" if config.oracle == "enformer" else "sei"
    with tempfile.TemporaryDirectory(prefix="seqfoundry-") as folder:
        trunk = load_trunk(config, write_tiny(kind, Path(folder), seed=config.seed))
        return Backbone(trunk, config).to(device)


def load_trunk(config: Config, path: Path) -> Enformer | Sei:
    """Read a checkpoint of the kind that ``oracle`` says.

    Raises as `load_enformer` and `load_sei`.
    """
    if config.oracle == "enformer":
        return load_enformer(path)
    return load_sei(path, classifier=config.backbone.features == "profiles")


def features_of(
    backbone: Backbone, codes: Codes, config: Config, ids: Sequence[str] = ()
) -> Features:
    """Compute the features of rows once, or look them up in ``backbone.cache``.

    An empty setting keeps them in memory.

    ``ids`` of rows name their loci where the flanks are genomic.

    Raises
    ------
    InputError
        As `Backbone.embed`, `locus_of`, and `cache.collect`.
    """
    loci = [locus_of(name) for name in ids] if backbone.genome else None
    places = [str(locus) for locus in loci] if loci else [""] * len(codes)
    keys = [
        hashlib.sha1(row.tobytes() + place.encode(), usedforsecurity=False).digest()
        for row, place in zip(codes, places, strict=True)
    ]
    chosen = config.backbone
    store = FeatureCache(
        folder=Path(chosen.cache) if chosen.cache else None,
        fingerprint=backbone.fingerprint,
        width=backbone.width,
        dtype=chosen.cache_dtype,
        batch=backbone.batch,
    )

    def compute(rows: Indices) -> Values:
        return backbone.embed(codes[rows], [loci[row] for row in rows.tolist()] if loci else None)

    return collect(keys, compute, store)
