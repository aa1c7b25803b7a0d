"""What commands of all families share: `simulate`, `train`, `evaluate`, the options of jobs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from seqfoundry.core import command_line
from seqfoundry.core.family import Family
from seqfoundry.engine import Request


def simulate_command(family: Family) -> click.Command:
    """Make the command ``simulate <family>``."""

    @command_line.command("simulate")
    @command_line.params
    @command_line.overrides
    @command_line.out
    def simulate(params: Path, overrides: str, out: Path) -> Any:
        """Write simulated data with known truth."""
        return simulate_data(family, params, overrides, out)

    return simulate


def simulate_data(family: Family, params: Path, overrides: str, out: Path) -> Any:
    """Simulate a family's data into a folder, all or nothing."""
    from seqfoundry.core.files.atomic import atomic_folder

    config = family.settings(params, overrides)
    with atomic_folder(out) as folder:
        return family.module("simulate").simulate(config, folder)


def train_command(
    family: Family, *, names_its_data: Callable[[Any], bool] | None = None
) -> click.Command:
    """Make the command ``train <family>``.

    Parameters
    ----------
    names_its_data
        Tells of a family's ``Config`` whether it says itself where the data lie.
    """

    @command_line.command("train")
    @command_line.params
    @command_line.overrides
    @command_line.data
    @command_line.option(
        "--out",
        type=command_line.PATH,
        metavar="DIR",
        help="Folder to write (default: build/FAMILY/runs/RUN_ID).",
    )
    @command_line.device
    @command_line.resume_run
    @command_line.no_track
    @command_line.overwrite
    def train(
        params: Path,
        overrides: str,
        data: Path | None,
        out: Path | None,
        device: str,
        resume_run: str | None,
        no_track: bool,
        overwrite: bool,
    ) -> Any:
        """Train a model as one tracked run.

        A run that was stopped goes on with --resume RUN_ID and the same settings. With --resume
        auto it works in .OUT.partial until it is complete, and the same command goes on.
        """
        from seqfoundry.core.runs.options import TrainOptions
        from seqfoundry.registry import dataset

        family.check_processes()
        config = family.settings(params, overrides)
        if data is None and names_its_data is not None and names_its_data(config):
            folder = None
        else:
            folder = dataset.ensure(family.name, data)
        options = TrainOptions(device, resume_run, not no_track, overwrite)
        return family.module("train").train(config, folder, out, options)

    return train


def evaluate_command(family: Family) -> click.Command:
    """Make the command ``evaluate <family>``."""

    @command_line.command("evaluate")
    @command_line.model
    @command_line.data
    @command_line.out
    def evaluate(model: str, data: Path | None, out: Path) -> Any:
        """Measure a model on data that it was not trained on."""
        from seqfoundry.registry import dataset, promotion

        metrics = promotion.evaluate(family.name, model, dataset.ensure(family.name, data), out)
        headlines = {
            key: value for key, value in metrics.items() if not key.endswith((".low", ".high"))
        }
        return {**headlines, "report": str(out / "evaluation.txt")}

    return evaluate


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all jobs share; the function gets them as one ``request``."""

    @command_line.model
    @command_line.out
    @command_line.resume
    @command_line.overwrite
    @command_line.engine
    @command_line.master
    @functools.wraps(function)
    def with_request(
        input: Path,
        model: str,
        out: Path,
        resume: bool,
        overwrite: bool,
        engine: str,
        master: str | None,
        **options: Any,
    ) -> Any:
        request = Request(input, model, out, resume, overwrite, engine, master)
        return function(request, **options)

    return with_request
