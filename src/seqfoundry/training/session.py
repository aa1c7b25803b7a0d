"""One training run from its record to its metrics: what every family's ``train`` does alike."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqfoundry.core.errors import InterruptedRunError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.tables import write_history
from seqfoundry.core.runs import tracking
from seqfoundry.core.runs.options import TrainOptions, stopping_on_signals
from seqfoundry.core.runs.processes import Process
from seqfoundry.core.settings.config import digest
from seqfoundry.training.checkpoints import Checkpoint, CheckpointFormat, Checkpoints

log = logging.getLogger(__name__)


@dataclass
class TrainingSession:
    """A run, its checkpoints and its folder; in a worker process nothing is written."""

    run: tracking.Run
    checkpoints: Checkpoints
    is_main: bool = True

    @property
    def out(self) -> Path:
        """Folder of the run's files."""
        return self.run.out

    @property
    def stop_requested(self) -> bool:
        """Whether SIGTERM or Ctrl-C asked this process to stop at the next safe point."""
        return self.run.stop_requested

    def last_checkpoint(self) -> Checkpoint | None:
        """Read where a resumed run stopped; None for a new run.

        None also for a run that was killed before its first checkpoint: it begins again.

        Raises
        ------
        ModelError
            If the checkpoint is damaged or of other settings.
        """
        if not self.run.resumed:
            return None
        if not self.checkpoints.path("last").is_file():
            folder = self.checkpoints.folder
            log.warning("%s: there is no checkpoint yet, training begins again", folder)
            return None
        return self.checkpoints.load("last")

    def record(
        self,
        number: int,
        metrics: Mapping[str, float | None],
        history: Sequence[Mapping[str, Any]],
        checkpoint: Checkpoint,
        *,
        best: str | None,
        unit: str = "epoch",
    ) -> None:
        """Save an epoch (or other ``unit``), write the history so far, and send its metrics.

        ``best`` names the second checkpoint of an epoch that is the best so far. It is written
        before ``last``: a run that is killed between the two does the epoch again.
        """
        if not self.is_main:
            return
        if best is not None:
            self.checkpoints.save(best, checkpoint)
        self.checkpoints.save("last", checkpoint)
        write_history(self.out / "history.tsv", history, unit)
        self.run.metrics(metrics, step=number)
        self.run.checkpoint(self.checkpoints.folder)

    def finish(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Write ``metrics.json``, send its numbers, and put the run's record into the model."""
        files.copy_whole(self.out / "run.json", self.out / "model" / "run.json")
        files.write_json(self.out / "metrics.json", metrics)
        numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
        self.run.metrics(numbers, step=step)

    def summary(
        self, metrics: Mapping[str, Any], headlines: Sequence[str], *, digits: int = 4
    ) -> dict[str, Any]:
        """Return the run's id, its folder, and those headlines that are defined."""
        shown: dict[str, Any] = {"run_id": self.run.id, "out": str(self.out)}
        for name in headlines:
            value = metrics.get(name)
            if value is not None and not math.isnan(value):
                shown[name] = round(float(value), digits)
        return shown


@contextlib.contextmanager
def open_session(
    family: str,
    settings: Mapping[str, Any],
    *,
    data: Path | None,
    out: Path | None,
    options: TrainOptions,
    checkpoint_format: CheckpointFormat,
    identity: str | None = None,
    process: Process | None = None,
) -> Iterator[TrainingSession]:
    """Open a run, or the one that ``options`` resumes, and end it as what happened within.

    Parameters
    ----------
    settings
        All settings of the run, resolved.
    identity
        Digest of what checkpoints depend on; by default that of the settings.
    process
        One of several that train together: only the main one has a run.

    Raises
    ------
    TrackingError, MissingError, ConfigError, OutputError
        As `tracking.run`.
    InterruptedRunError
        If the process was asked to stop; the run has ended as KILLED.
    """
    identity = digest(settings) if identity is None else identity
    if process is not None and not process.is_main:
        worker = tracking.Run("", Path(), resumed=False)
        with stopping_on_signals(worker.request_stop):
            checkpoints = Checkpoints(Path(), identity, checkpoint_format)
            yield TrainingSession(worker, checkpoints, is_main=False)
        return
    with tracking.run(family, settings, data=data, out=out, options=options) as run:
        checkpoints = Checkpoints(run.out / "checkpoints", identity, checkpoint_format)
        session = TrainingSession(run, checkpoints)
        try:
            yield session
        except InterruptedRunError as stop:
            advice = f"go on with the same command and --resume {run.id}"
            raise InterruptedRunError(f"{stop}; {advice}") from None
