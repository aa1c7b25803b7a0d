"""Run a job on a user's input, chunk by chunk: on this machine, or on a Spark cluster.

`job` says what a job is, `run` does one. `local` and `spark` differ in who makes the parts, not in
what is written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqfoundry.core.errors import InputError

if TYPE_CHECKING:  # commands import this module, and their help is to be there at once
    from seqfoundry.engine.job import Job


@dataclass(frozen=True)
class Request:
    """What the user asks of any job.

    Parameters
    ----------
    source
        The input: a file or a folder.
    model
        A model folder, ``models:/`` URI, run id or ``zoo:NAME``.
    out
        Folder to write.
    resume
        Go on with work that was interrupted.
    overwrite
        Replace earlier results in ``out``.
    engine
        ``local`` or ``spark``.
    master
        Master of Spark; None for all cores of this machine.

    Raises
    ------
    InputError
        If a master is given, but not Spark.
    """

    source: Path
    model: str
    out: Path
    resume: bool = False
    overwrite: bool = False
    engine: str = "local"
    master: str | None = None

    def __post_init__(self) -> None:
        if self.engine == "local" and self.master:
            raise InputError(
                f"--master: must be given with --engine spark only, got {self.master}"
            )


def run(job: "Job", request: Request) -> dict[str, Any]:
    """Do a job and return its summary.

    Results appear in ``request.out`` whole or not at all. Work that was interrupted leaves its
    finished parts in ``.<out>.partial``; with ``resume`` they are not made again, by whichever
    engine. Faults of the input leave nothing.

    Raises
    ------
    InputError, MissingError
        If the input is not as it must be, or what Spark needs is not there.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier results), holds the
        input or cannot be written; or what is to be resumed was made from other input, with
        another model or with other settings.
    """
    from seqfoundry.core.files import atomic
    from seqfoundry.engine import local, spark
    from seqfoundry.engine.job import Parts
    from seqfoundry.engine.parts import check_inputs, check_out, resumable, resume_record
    from seqfoundry.registry.portable_model import open_portable

    on_spark = request.engine == "spark"
    master = request.master or spark.DEFAULT_MASTER
    inputs = [request.source, *job.further_inputs()]
    check_inputs(inputs)
    check_out(request.out, inputs, mark=job.marker, overwrite=request.overwrite)
    if on_spark:
        spark.check_master(master)
    with open_portable(job.family, request.model) as model:
        job.check(model)
        if not on_spark:
            model.load()  # a damaged model is refused before anything is written
        record = resume_record(job, inputs, model)
        with resumable(request.out, record, resume=request.resume) as partial:
            if on_spark:
                left_out = spark.make_parts(job, model, request.source, partial, master)
            else:
                left_out = local.make_parts(job, model, request.source, partial)
            parts = Parts(request.source, tuple(partial.folders()), left_out)
            if not parts.folders:
                raise InputError(f"{request.source}: must have at least one row, got none")
            with atomic.atomic_folder(request.out, replace=request.overwrite) as folder:
                summary = job.merge_parts(model, parts, folder)
                if on_spark:
                    spark.write_partitions(folder, parts)
    return summary
