"""Every step of every room in order: data, training, evaluation, registration, promotion, first annotations.

Each step is a command of its own, so that a process holds one framework; training runs are children of one parent
run. A step that is done already, with these settings, data and source, is not done again. A room that fails leaves
the others to finish, and the exit status tells.
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

from seqfoundry.core import data as files
from seqfoundry.core import provenance, tracking
from seqfoundry.core.errors import GateError, InterruptedRunError, MissingError, SeqfoundryError, TrackingError
from seqfoundry.core.loop import stopping_on_signals
from seqfoundry.core.report import text_table
from seqfoundry.registry import card, catalogue, dataset, rooms, store

log = logging.getLogger(__name__)

_COLUMNS = ("room", "model", "version", "metrics", "seconds", "results")


@dataclass(frozen=True)
class _Example:
    """What a room's users do with the champion: verb, folder below build/ROOM, file of data/ROOM/example, options."""

    verb: str
    out: str
    source: str = "."
    options: tuple[str, ...] = ()


_EXAMPLES: dict[str, tuple[_Example, ...]] = {
    "reads": (_Example("annotate", "annotate", "reads.fastq", ("--whitelist", "data/reads/example/whitelist.tsv")),),
    "copynumber": (_Example("annotate", "annotate"),),
    "enhancer": (
        _Example("score", "score-t1", "predictions_t1.jsonl", ("--task", "t1")),
        _Example("score", "score-t3", "predictions_t3.jsonl", ("--task", "t3")),
    ),
    "vdj": (_Example("score", "score", "rearrangements.tsv"),),
}


@dataclass(frozen=True)
class _Step:
    """One command of the pipeline; its words in braces are what is known only when it is done (``_do``)."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """One room on its way: where its files lie, and what is known of its run so far."""

    root: Path
    room: str
    profile: str

    @property
    def build(self) -> Path:
        return self.root / "build" / self.room

    @property
    def data(self) -> Path:
        return self.root / "data" / self.room

    @property
    def run_id(self) -> str:
        """Id of the run whose results lie in the room's folder; empty where there is none."""
        return str(files.run_in(self.build / "train").get("run_id", ""))

    @property
    def name(self) -> str:
        """Name of the room's model in the registry, once it is trained; else empty."""
        folder = self.build / "train" / "model"
        return str(store.read_served(folder)["registered_name"]) if folder.is_dir() else ""

    @property
    def version(self) -> str:
        """Version that the run has become; empty where it has not."""
        return catalogue.version_of(self.run_id) if self.run_id else ""

    @property
    def model(self) -> str:
        """URI of the champion, as a version: the alias may be moved later; empty where there is none."""
        found = catalogue.champion(self.name) if self.name else None
        return f"models:/{self.name}/{found.version}" if found is not None else ""


@dataclass
class _Parent:
    """The run whose children the steps are; made when the first step is, so that nothing to do leaves no trace."""

    name: str
    client: Any
    run_id: str = ""

    def open(self) -> None:
        if not self.run_id:
            self.run_id = tracking.open_parent(self.client, self.name)
            os.environ["SEQFOUNDRY_PARENT_RUN_ID"] = self.run_id
            os.environ.pop("MLFLOW_RUN_ID", None)  # of `mlflow run`: the steps must not write into it

    def close(self, *, failed: bool) -> None:
        if self.run_id:
            tracking.close_parent(self.client, self.run_id, failed=failed)


def run_all(profile: str, *, again: bool = False) -> str:
    """Go the whole way for every room with ``params/<room>/<profile>.yaml`` and return the table of results.

    ``again`` does everything anew, whatever is done already. Of two at once in one checkout the second waits.

    Raises
    ------
    MissingError
        Before anything is done, if a room has no such settings.
    SeqfoundryError
        After everything else is done, if a room failed.
    """
    root = provenance.project_root()
    for room in rooms.ROOMS:
        path = root / "params" / room / f"{profile}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
            raise MissingError(f"--profile {profile}: must name settings of the room {room}, got none; files: {known}")
    with files.lock(root / "build" / "main.lock"):
        return _run_rooms(root, profile, again=again)


def _run_rooms(root: Path, profile: str, *, again: bool) -> str:
    parent = _Parent(f"main-{profile}", tracking.client())
    if os.environ.get("MLFLOW_RUN_ID"):  # there is one already
        parent.open()
    rows: list[tuple[str, ...]] = []
    failed = list(rooms.ROOMS)
    try:
        for room in rooms.ROOMS:
            place, start = _Place(root, room, profile), time.monotonic()
            fault = _run_room(place, parent, again=again)
            rows += _rows(place, fault, time.monotonic() - start)
            if not fault:
                failed.remove(room)
    finally:
        parent.close(failed=bool(failed))
    table = text_table(_COLUMNS, rows)
    if failed:
        log.info("%s", table)
        raise SeqfoundryError(
            f"main: every room must finish, got a fault in {', '.join(failed)} (its message is above)"
        )
    return table


def _run_room(place: _Place, parent: _Parent, *, again: bool) -> str:
    """Do one room's steps that are not done, until one fails; return what failed, or nothing."""
    steps = _steps(place)
    for number, step in enumerate(steps, start=1):
        where = f"{place.room}: step {number} of {len(steps)}, {step.name}"
        start = time.monotonic()
        try:
            if not again and _is_done(place, step):
                log.info("%s: already done", where)
                continue
            log.info("%s", where)
            status = _do(place, parent, step)
            is_refused = step.name == "promote" and status == GateError.status and bool(place.model)
        except InterruptedRunError:
            raise
        except SeqfoundryError as error:  # the store, or a damaged model: other rooms may have more luck
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
    answers = _answers_from(place) if step.name in _example_names(place.room) else None
    filled = {"{name}": lambda: place.name, "{version}": lambda: place.version, "{model}": lambda: place.model}
    status = _run_step(place.root, [filled[word]() if word in filled else word for word in step.words])
    if status == 0 and answers is not None:
        summary = files.md5(place.build / step.name / "summary.json")
        files.write_json(place.build / f"{step.name}.json", {**answers, "summary": summary})
    return status


def _example_names(room: str) -> list[str]:
    return [one.out for one in _EXAMPLES[room]]


def _answers_from(place: _Place) -> dict[str, str]:
    """Tell what answers are made from: champion, its run (a new store numbers anew), example and source."""
    found = catalogue.champion(place.name)
    run_id = str(found.run_id) if found is not None else ""
    example, source = files.digest(place.data / "example"), provenance.source_digest("apply")
    return {"model": place.model, "run_id": run_id, "example": example, "source": source}


def _run_step(root: Path, words: list[str]) -> int:
    """Run one command and return its status; a request to stop is passed on to it, and ends the pipeline after it.

    Raises
    ------
    InterruptedRunError
        If this process was asked to stop.
    """
    asked = []
    with subprocess.Popen([sys.executable, "-m", "seqfoundry", *words], cwd=root, stdout=sys.stderr) as child:

        def ask() -> None:
            asked.append(True)
            child.terminate()

        with stopping_on_signals(ask):
            status = child.wait()
    if asked:
        raise InterruptedRunError("main: stopped on request; what the steps say above tells how to go on")
    return status


def _steps(place: _Place) -> list[_Step]:
    """List a room's steps."""
    room, build, data = place.room, f"build/{place.room}", f"data/{place.room}"
    run, settings = f"{build}/train", f"params/{room}/{place.profile}.yaml"
    return [
        _Step("data", ("data", "build", room)),
        _Step("train", ("train", room, "--params", settings, "--data", data, "--out", run, "--overwrite")),
        _Step("evaluate", ("evaluate", room, "--model", run, "--data", data, "--out", f"{build}/evaluate")),
        _Step("register", ("register", room, "--run", run)),
        _Step("promote", ("promote", "{name}", "--version", "{version}")),
        *(
            _Step(
                one.out,
                (one.verb, room, f"{data}/example/{one.source}", "--model", "{model}", "--out", f"{build}/{one.out}",
                 *one.options, "--overwrite"),
            )
            for one in _EXAMPLES[room]
        ),
    ]  # fmt: skip


def _is_done(place: _Place, step: _Step) -> bool:
    """Tell whether a step has left its results; what cannot be read is not done, and the step itself says why.

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
        log.debug("%s, %s: %s", place.room, step.name, error)
        return False


def _has_data(place: _Place) -> bool:
    pinned = files.read_pin(place.root)["rooms"].get(place.room)
    written = files.read_json(dataset.manifest_path(place.room)).get("digest")
    return bool(pinned == written == files.digest(place.data))


def _is_trained(place: _Place) -> bool:
    """Tell whether the room's folder holds a run of these settings, data and source that the store knows as finished.

    A run ends as finished only when its files are complete.
    """
    found = files.run_in(place.build / "train").get("step.key")
    if not found or not place.name:
        return False
    config = rooms.settings(place.room, place.root / "params" / place.room / f"{place.profile}.yaml")
    source = Path(getattr(config, "store_path", "") or place.data)  # as the room does
    run = tracking.get_run(place.run_id)
    wanted = provenance.step_key(place.room, provenance.settings_digest(config), files.digest(source))
    return bool(found == wanted == run.data.tags.get("step.key") and run.info.status == "FINISHED")


def _is_evaluated(place: _Place) -> bool:
    """Tell whether the room's evaluation is the one of its run on these data: the store has the same figures."""
    out, run = place.build / "evaluate", tracking.get_run(place.run_id)
    if run.data.tags.get("test.data.md5") != files.digest(place.data) or not (out / "report.html").is_file():
        return False
    numbers = {key: value for key, value in files.read_json(out / "metrics.json").items() if _is_number(value)}
    return bool(numbers) and all(run.data.metrics.get(key) == value for key, value in numbers.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_promoted(place: _Place) -> bool:
    found = catalogue.champion(place.name)
    return found is not None and found.run_id == place.run_id


def _has_answers(place: _Place, out: str) -> bool:
    """Tell whether answers are the champion's to the example as it is now, and not overwritten by others since."""
    made = files.read_json(place.build / f"{out}.json")
    now = {**_answers_from(place), "summary": files.md5(place.build / out / "summary.json")}
    return bool(place.model) and made == now


def _rows(place: _Place, fault: str, seconds: float) -> list[tuple[str, ...]]:
    """Lines of the table for a room: a metric of its champion each; what failed, or was refused, comes first."""
    name, version, metrics = "", "", []
    try:
        name = place.name
        if name and (found := catalogue.champion(name)) is not None:
            version, metrics = str(found.version), list(_metrics(found.run_id))
            if found.run_id != place.run_id:
                metrics.insert(0, f"version {place.version} was not promoted, the champion stays")
    except SeqfoundryError as error:
        log.debug("%s: %s", place.room, error)
    first, *more = [fault] if fault else metrics or [""]
    return [
        (place.room, name, version, first, f"{seconds:7.0f}", _results(place)),
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
    """Where a room's results lie, relative to the project."""
    parts = ("train", "evaluate", *(one.out for one in _EXAMPLES[place.room]))
    there = ",".join(part for part in parts if (place.build / part).is_dir())
    return f"build/{place.room}/{{{there}}}" if there else ""
