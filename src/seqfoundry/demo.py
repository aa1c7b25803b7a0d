"""Every step of every family in order.

Data, training, evaluation, registration, promotion, first annotations.

Each step is a command of its own, so that a process holds one framework; training runs are
children of one parent run. A step that is done already, with these settings, data and source, is
not done again. A family that fails leaves the others to finish, and the exit status tells.
"""

import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqfoundry.core.errors import (
    GateError,
    InterruptedRunError,
    MissingError,
    SeqfoundryError,
    TrackingError,
)
from seqfoundry.core.family import all_families, find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.reporting.html import text_table
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.runs.loop import stopping_on_signals
from seqfoundry.registry import card, dataset, listing, models

log = logging.getLogger(__name__)

_COLUMNS = ("family", "model", "version", "metrics", "seconds", "results")


@dataclass(frozen=True)
class _Step:
    """One command of the pipeline.

    Its words in braces are what is known only when it is done (``_do``).
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """One family on its way: where its files lie, and what is known of its run so far."""

    root: Path
    family: str
    profile: str

    @property
    def build(self) -> Path:
        return self.root / "build" / self.family

    @property
    def data(self) -> Path:
        return self.root / "data" / self.family

    @property
    def run_id(self) -> str:
        """Id of the run whose results lie in the family's folder; empty where there is none."""
        return str(files.run_in(self.build / "train").get("run_id", ""))

    @property
    def name(self) -> str:
        """Name of the family's model in the registry, once it is trained; else empty."""
        folder = self.build / "train" / "model"
        return str(models.read_served(folder)["registered_name"]) if folder.is_dir() else ""

    @property
    def version(self) -> str:
        """Version that the run has become; empty where it has not."""
        return listing.version_of(self.run_id) if self.run_id else ""

    @property
    def model(self) -> str:
        """URI of the champion, as a version: the alias may be moved later.

        Empty where there is none.
        """
        found = listing.champion(self.name) if self.name else None
        return f"models:/{self.name}/{found.version}" if found is not None else ""


@dataclass
class _Parent:
    """The run whose children the steps are.

    Made when the first step is, so that nothing to do leaves no trace.
    """

    name: str
    client: Any
    run_id: str = ""

    def open(self) -> None:
        if not self.run_id:
            self.run_id = tracking.open_parent(self.client, self.name)
            os.environ["SEQFOUNDRY_PARENT_RUN_ID"] = self.run_id
            os.environ.pop(
                "MLFLOW_RUN_ID", None
            )  # of `mlflow run`: the steps must not write into it

    def close(self, *, failed: bool) -> None:
        if self.run_id:
            tracking.close_parent(self.client, self.run_id, failed=failed)


def run_all(profile: str, *, again: bool = False) -> str:
    """Go the whole way for every family with ``params/<family>/<profile>.yaml`` and return the table of results.

    ``again`` does everything anew, whatever is done already. Of two at once in one checkout the
    second waits.

    Raises
    ------
    MissingError
        Before anything is done, if a family has no such settings.
    SeqfoundryError
        After everything else is done, if a family failed.
    """
    root = provenance.project_root()
    for family in all_families():
        path = root / "params" / family / f"{profile}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
            raise MissingError(
                f"--profile {profile}: must name settings of the family {family}, got none; "
                f"files: {known}"
            )
    with files.lock(root / "build" / "main.lock"):
        return _run_families(root, profile, again=again)


def _run_families(root: Path, profile: str, *, again: bool) -> str:
    parent = _Parent(f"main-{profile}", tracking.client())
    if os.environ.get("MLFLOW_RUN_ID"):  # there is one already
        parent.open()
    rows: list[tuple[str, ...]] = []
    failed = list(all_families())
    try:
        for family in all_families():
            place, start = _Place(root, family, profile), time.monotonic()
            fault = _run_family(place, parent, again=again)
            rows += _rows(place, fault, time.monotonic() - start)
            if not fault:
                failed.remove(family)
    finally:
        parent.close(failed=bool(failed))
    table = text_table(_COLUMNS, rows)
    if failed:
        log.info("%s", table)
        raise SeqfoundryError(
            f"main: every family must finish, got a fault in {', '.join(failed)} (its message is "
            "above)"
        )
    return table


def _run_family(place: _Place, parent: _Parent, *, again: bool) -> str:
    """Do one family's steps that are not done, until one fails; return what failed, or nothing."""
    steps = _steps(place)
    for number, step in enumerate(steps, start=1):
        where = f"{place.family}: step {number} of {len(steps)}, {step.name}"
        start = time.monotonic()
        try:
            if not again and _is_done(place, step):
                log.info("%s: already done", where)
                continue
            log.info("%s", where)
            status = _do(place, parent, step)
            is_refused = (
                step.name == "promote" and status == GateError.status and bool(place.model)
            )
        except InterruptedRunError:
            raise
        except (
            SeqfoundryError
        ) as error:  # the store, or a damaged model: other families may have more luck
            log.error("%s: %s", where, error)
            return f"{step.name} failed"
        seconds = time.monotonic() - start
        if status == 0:
            log.info("%s: done in %.1f s", where, seconds)
        elif is_refused:
            log.warning("%s: the new version was not promoted, the champion stays", where)
        else:
            log.error("%s: ended with status %d after %.1f s", where, status, seconds)
            return f"{step.name} failed"
    return ""


def _do(place: _Place, parent: _Parent, step: _Step) -> int:
    parent.open()
    answers = _answers_from(place) if step.name in _example_names(place.family) else None
    filled = {
        "{name}": lambda: place.name,
        "{version}": lambda: place.version,
        "{model}": lambda: place.model,
    }
    status = _run_step(
        place.root, [filled[word]() if word in filled else word for word in step.words]
    )
    if status == 0 and answers is not None:
        summary = files.md5(place.build / step.name / "summary.json")
        files.write_json(place.build / f"{step.name}.json", {**answers, "summary": summary})
    return status


def _example_names(family: str) -> list[str]:
    return [one.out for one in find_family(family).examples]


def _answers_from(place: _Place) -> dict[str, str]:
    """Tell what answers are made from.

    Champion, its run (a new store numbers anew), example and source.
    """
    found = listing.champion(place.name)
    run_id = str(found.run_id) if found is not None else ""
    example, source = files.digest(place.data / "example"), provenance.source_digest(place.family)
    return {"model": place.model, "run_id": run_id, "example": example, "source": source}


def _run_step(root: Path, words: list[str]) -> int:
    """Run one command and return its status.

    A request to stop is passed on to it, and ends the pipeline after it.

    Raises
    ------
    InterruptedRunError
        If this process was asked to stop.
    """
    asked = []
    with subprocess.Popen(
        [sys.executable, "-m", "seqfoundry", *words], cwd=root, stdout=sys.stderr
    ) as child:

        def ask() -> None:
            asked.append(True)
            child.terminate()

        with stopping_on_signals(ask):
            status = child.wait()
    if asked:
        raise InterruptedRunError(
            "main: stopped on request; what the steps say above tells how to go on"
        )
    return status


def _steps(place: _Place) -> list[_Step]:
    """List a family's steps."""
    family, build, data = place.family, f"build/{place.family}", f"data/{place.family}"
    run, settings = f"{build}/train", f"params/{family}/{place.profile}.yaml"
    return [
        _Step("data", ("data", "build", family)),
        _Step("train", ("train", family, "--params", settings, "--data", data, "--out", run, "--overwrite")),
        _Step("evaluate", ("evaluate", family, "--model", run, "--data", data, "--out", f"{build}/evaluate")),
        _Step("register", ("register", family, "--run", run)),
        _Step("promote", ("promote", "{name}", "--version", "{version}")),
        *(
            _Step(
                one.out,
                (one.verb, family, f"{data}/example/{one.source}", "--model", "{model}", "--out", f"{build}/{one.out}",
                 *(word.format(example=f"{data}/example") for word in one.options), "--overwrite"),
            )
            for one in find_family(family).examples
        ),
    ]  # fmt: skip


def _is_done(place: _Place, step: _Step) -> bool:
    """Tell whether a step has left its results.

    What cannot be read is not done, and the step itself says why.

    Raises
    ------
    TrackingError
        If the store fails: what it holds may be done all the same.
    """
    known = {
        "data": _has_data,
        "train": _is_trained,
        "evaluate": _is_evaluated,
        "register": lambda place: bool(place.version),
        "promote": _is_promoted,
    }
    try:
        return known[step.name](place) if step.name in known else _has_answers(place, step.name)
    except TrackingError:
        raise
    except SeqfoundryError as error:
        log.debug("%s, %s: %s", place.family, step.name, error)
        return False


def _has_data(place: _Place) -> bool:
    pinned = files.read_pin(place.root)["families"].get(place.family)
    written = files.read_json(dataset.manifest_path(place.family)).get("digest")
    return bool(pinned == written == files.digest(place.data))


def _is_trained(place: _Place) -> bool:
    """Tell whether the family's folder holds a run of these settings, data and source that the store knows as finished.

    A run ends as finished only when its files are complete.
    """
    found = files.run_in(place.build / "train").get("step.key")
    if not found or not place.name:
        return False
    config = find_family(place.family).settings(
        place.root / "params" / place.family / f"{place.profile}.yaml"
    )
    source = Path(getattr(config, "store_path", "") or place.data)  # as the family does
    run = tracking.get_run(place.run_id)
    wanted = provenance.step_key(
        place.family, provenance.settings_digest(config), files.digest(source)
    )
    return bool(found == wanted == run.data.tags.get("step.key") and run.info.status == "FINISHED")


def _is_evaluated(place: _Place) -> bool:
    """Tell whether the family's evaluation is the one of its run on these data.

    The store has the same figures.
    """
    out, run = place.build / "evaluate", tracking.get_run(place.run_id)
    if (
        run.data.tags.get("test.data.md5") != files.digest(place.data)
        or not (out / "report.html").is_file()
    ):
        return False
    numbers = {
        key: value
        for key, value in files.read_json(out / "metrics.json").items()
        if _is_number(value)
    }
    return bool(numbers) and all(
        run.data.metrics.get(key) == value for key, value in numbers.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_promoted(place: _Place) -> bool:
    found = listing.champion(place.name)
    return found is not None and found.run_id == place.run_id


def _has_answers(place: _Place, out: str) -> bool:
    """Tell whether answers are the champion's to the example as it is now, and not overwritten by others since."""
    made = files.read_json(place.build / f"{out}.json")
    now = {**_answers_from(place), "summary": files.md5(place.build / out / "summary.json")}
    return bool(place.model) and made == now


def _rows(place: _Place, fault: str, seconds: float) -> list[tuple[str, ...]]:
    """Lines of the table for a family: a metric of its champion each.

    What failed, or was refused, comes first.
    """
    name, version, metrics = "", "", []
    try:
        name = place.name
        if name and (found := listing.champion(name)) is not None:
            version, metrics = str(found.version), list(_metrics(found.run_id))
            if found.run_id != place.run_id:
                metrics.insert(0, f"version {place.version} was not promoted, the champion stays")
    except SeqfoundryError as error:
        log.debug("%s: %s", place.family, error)
    first, *more = [fault] if fault else metrics or [""]
    return [
        (place.family, name, version, first, f"{seconds:7.0f}", _results(place)),
        *(("", "", "", metric, "", "") for metric in more),
    ]


def _metrics(run_id: str) -> Iterator[str]:
    """Write the headline metric of a run with its 95 % interval, then the others that have gates."""
    run = tracking.get_run(run_id)
    headline, values = run.data.params.get("cfg.headline", ""), run.data.metrics
    for key in dict.fromkeys((headline, *sorted(card.gates(run)))):
        if card.measured(run, key) is None:
            continue
        low, high = card.measured(run, f"{key}.low"), card.measured(run, f"{key}.high")
        interval = f" ({low:.4g} to {high:.4g})" if None not in (low, high) else ""
        yield f"{key} {values[key]:.4g}{interval}"


def _results(place: _Place) -> str:
    """Where a family's results lie, relative to the project."""
    parts = ("train", "evaluate", *(one.out for one in find_family(place.family).examples))
    there = ",".join(part for part in parts if (place.build / part).is_dir())
    return f"build/{place.family}/{{{there}}}" if there else ""
