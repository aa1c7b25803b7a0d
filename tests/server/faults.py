"""Inject faults into real processes of the product, and print what held. Not collected by pytest.

    nice python tests/server/faults.py [--trials N] [--rooms vdj,enhancer] [--only disk] [--seed S]

Every process is the command line with smoke settings, in scratch folders with a tracking store of their own. Exit
status 1 where something did not hold. The faults of servers need what ``stack.py`` needs, the full disk needs root.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import product
import stack

ROOMS = ("reads", "copynumber", "enhancer", "vdj")
TOLERANCE = dict.fromkeys(ROOMS, 0.0)  # relative, of every final metric: bit for bit on one machine
REPEATED = {"vdj": 2}  # epochs that a resumed run does again by design; the others do none again
NAMES = {"reads": "reads-10x3p_sc_ont_016", "enhancer": "enhancer-demo", "vdj": "vdj-twostep-em"}
HEADLINE = "test.below_null"
LONGER = ("--set", "fit.bootstrap=40")  # so that something is left to do when the server is back
_MIB = 1 << 20


class Skipped(Exception):
    """A fault that cannot be injected here, and why."""


@dataclass(frozen=True)
class Row:
    """One line of the table. ``complaints`` has a list for each trial, empty where everything held."""

    fault: str
    must: str
    complaints: list[list[str]]
    seconds: float
    skipped: str = ""

    def cells(self) -> list[str]:
        """Fault, trials, what must hold, held, seconds."""
        held = sum(not found for found in self.complaints)
        shown = self.skipped or f"{held} of {len(self.complaints)}"
        return [self.fault, str(len(self.complaints)), self.must, shown, f"{self.seconds:.0f}"]


@dataclass
class Bench:
    """What every fault is given."""

    made: product.Product
    trials: int
    random: np.random.Generator
    open: contextlib.ExitStack
    team: stack.Stack | None = None

    def on_server(self) -> product.Product:
        """Return the product with the tracking server instead of the embedded store; started when first asked for."""
        if self.team is None:
            if fault := stack.lacking("postgresql", "mlflow", "store"):
                raise Skipped(fault)
            self.team = self.open.enter_context(stack.running())
        folder = self.made.root / "server"
        folder.mkdir(exist_ok=True)
        return product.Product(folder, self.team.client())


# ---- faults of servers


def server_stops(bench: Bench, _: int) -> list[str]:
    """Kill the tracking server once training goes on, and bring it back when training has told what to do."""
    made, team = bench.on_server(), bench.team
    assert team is not None
    out = made.fresh("vdj")
    undisturbed = bench.made.undisturbed("vdj", *LONGER)
    child = made.train("vdj", out, *LONGER)
    if not child.until((out / "history.tsv").exists):
        return child.expect(0)
    team.processes["mlflow"].stop(signal.SIGKILL)
    found = ["training had ended before the server stopped"] if child.has_ended else []
    found += child.expect(2) + product.broken(out) + _compare(undisturbed, out)
    told = re.search(r"send them with the same train command and (--resume \w+ --out \S+)", child.said)
    team.restart("mlflow")
    if told is None:
        return [*found, f"no command was told: {child.said[-300:]}"]
    again = made.start(*child.words[: child.words.index("--out")], *told[1].split(), *LONGER)
    return found + again.expect(0) + _compare(undisturbed, out) + _in_store(made, out)


def database_restarts(bench: Bench, _: int) -> list[str]:
    """Stop PostgreSQL once training goes on, and start it again."""
    made, team = bench.on_server(), bench.team
    assert team is not None
    out = made.fresh("vdj")
    undisturbed = bench.made.undisturbed("vdj", *LONGER)
    child = made.train("vdj", out, *LONGER)
    if not child.until((out / "history.tsv").exists):
        return child.expect(0)
    team.restart("database")
    found = ["training had ended before the database was back"] if child.has_ended else []
    return found + child.expect(0) + _compare(undisturbed, out) + _in_store(made, out)


def _in_store(made: product.Product, out: Path) -> list[str]:
    """Complaints where the run in the store is not finished, or lacks a metric, an iteration or a file."""
    run_id = product.read(out / "run.json")["run_id"]
    code = """
import json, sys
from seqmodels.core import tracking
opened, run_id = tracking.client(), sys.argv[1]
run = opened.get_run(run_id)
def files(path=None):
    listed = opened.list_artifacts(run_id, path)
    return [name for one in listed for name in (files(one.path) if one.is_dir else [one.path])]
steps = sorted({one.step for one in opened.get_metric_history(run_id, "train.loss")})
print(json.dumps({"status": run.info.status, "metrics": run.data.metrics, "steps": steps, "files": files()}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, run_id], env=product.environment(made.tracking), cwd=stack.ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    stored = json.loads(done.stdout.splitlines()[-1])
    found = [] if stored["status"] == "FINISHED" else [f"the run is {stored['status']}"]
    numbers = {k: v for k, v in product.read(out / "metrics.json").items() if isinstance(v, int | float)}
    found += product.differences(numbers, {k: stored["metrics"].get(k) for k in numbers}, 1e-12)
    wanted = list(range((product.last_epoch(out) or 0) + 1))
    if not set(wanted) <= set(stored["steps"]):
        found.append(f"iterations in the store: {stored['steps']}, wanted {wanted}")
    here = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    return found + [f"not in the store: {name}" for name in sorted(here - set(stored["files"]))]


# ---- faults of the machine


def disk_is_full(bench: Bench, number: int, room: str) -> list[str]:
    """Train where less space is left than the results need, then free it and go on."""
    undisturbed = bench.made.undisturbed(room)
    need = sum(path.stat().st_size for path in undisturbed.out.rglob("*") if path.is_file())
    place = bench.made.fresh("disk")
    place.mkdir()
    size = need * 3 + 16 * _MIB
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        raise Skipped(f"mount: {mounted.stderr.strip()}")
    try:
        left = int(need * (number + bench.random.uniform()) / bench.trials * 0.9)
        filler = place / "filler"
        with filler.open("wb") as file:
            _fill(file, size - left)
        out = place / "out"
        child = bench.made.train(room, out)
        found = child.expect(2) + _one_line(child.said) + product.broken(out)
        filler.unlink()
        return found + _go_on(bench, room, out, undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _fill(file: Any, size: int) -> None:
    """Write ``size`` bytes."""
    for start in range(0, size, _MIB):
        file.write(bytes(min(_MIB, size - start)))


def _one_line(said: str) -> list[str]:
    """Complaints where a refusal is not one line at the end."""
    lines = [line for line in said.splitlines() if line.startswith("seqmodels: ")]
    return [] if len(lines) == 1 and said.rstrip().endswith(lines[0]) else [f"no single line, got: {said[-300:]}"]


def trainer_killed(bench: Bench, _: int, room: str) -> list[str]:
    """Kill a trainer at a random moment between the making of its folder and its end, and go on."""
    undisturbed, found = bench.made.undisturbed(room), ["it ended before it was killed, three times"]
    for _attempt in range(3):
        out = bench.made.fresh(room)
        child = bench.made.train(room, out)
        child.until(out.exists)
        time.sleep(bench.random.uniform(0, undisturbed.seconds))
        if not child.has_ended:
            found = child.kill() + product.broken(out) + _go_on(bench, room, out, undisturbed)
            break
    return found


def _go_on(bench: Bench, room: str, out: Path, undisturbed: product.Undisturbed) -> list[str]:
    """Resume a run that was broken off (or begin, where it had not): complaints about what it comes to."""
    run_id, before = product.read(out / "run.json").get("run_id"), product.last_epoch(out)
    had_checkpoint = any((out / "checkpoints").glob("last.*"))
    again = bench.made.train(room, out, *(["--resume", run_id] if run_id else []))
    found = again.expect(0)
    begun = product.first_epoch(again.said)
    if had_checkpoint and "begins anew" in again.said:
        found.append("a checkpoint was there, and training began anew")
    if before is not None and begun is not None and begun <= before - REPEATED.get(room, 0):
        found.append(f"epoch {before} was finished, and epoch {begun} was done again")
    if before is not None and not had_checkpoint:
        found.append(f"epoch {before} was finished, and there was no checkpoint")
    return found + product.broken(out) + product.leftovers(out) + _compare(undisturbed, out, room)


def _compare(undisturbed: product.Undisturbed, out: Path, room: str = "vdj") -> list[str]:
    """Complaints where a run lacks files or differs in its metrics."""
    here = {path.relative_to(out) for path in out.rglob("*")}
    wanted = {path.relative_to(undisturbed.out) for path in undisturbed.out.rglob("*")}
    found = [f"lacks {path}" for path in sorted(wanted - here)]
    return found + product.differences(undisturbed.metrics, product.read(out / "metrics.json"), TOLERANCE[room])


# ---- faults of use


def use_killed(bench: Bench, _: int, room: str) -> list[str]:
    """Kill an annotation or scoring, and go on: the same files, and nothing half-written before."""
    undisturbed, verb = bench.made.undisturbed(room), {"reads": "annotate", "enhancer": "score"}[room]
    source = _input(bench.made, room)
    words = [verb, room, source, "--model", undisturbed.out / "model", "--out"]
    wanted, done = bench.made.root / f"{verb}-{room}", bench.made.root / f"{verb}-{room}.seconds"
    if not wanted.is_dir():
        start = time.monotonic()
        bench.made.must(*words, wanted)
        done.write_text(str(time.monotonic() - start))
    seconds, found = float(done.read_text()), ["it ended before it was killed, three times"]
    for _attempt in range(3):
        out = bench.made.fresh(verb)
        child = bench.made.start(*words, out)
        time.sleep(seconds * bench.random.uniform(0.3, 1.0))
        if child.has_ended:
            continue
        found = child.kill() + (["the folder was there before it was whole"] if out.exists() else [])
        if out.exists():
            found = product.differences(*({k: str(v) for k, v in _given(one).items()} for one in (wanted, out)), 0.0)
            break
        found += bench.made.start(*words, out, "--resume").expect(0)
        same, here = _given(wanted), _given(out)
        found += [f"another {name}" for name in sorted(same.keys() | here.keys()) if same.get(name) != here.get(name)]
        rest = [path.name for path in out.parent.glob(f".{out.name}*")]
        found += [f"left behind: {name}" for name in rest]
        break
    return found


def _input(made: product.Product, room: str) -> Path:
    """Write the example of the data many times over, so that there are chunks to lose."""
    name, suffix = {"reads": ("reads.fastq", ".fastq"), "enhancer": ("predictions_t1.jsonl", ".jsonl")}[room]
    path = made.root / f"input-{room}{suffix}"
    if not path.is_file():
        example = (made.data(room) / "example" / name).read_text()
        if room == "reads":
            path.write_text(
                "".join(re.sub(r"(?m)\A@|(?<=\n)@(?=\S+[^\n]*\n[ACGTN]+\n\+)", f"@c{i}_", example) for i in range(60))
            )
        else:
            rows = [json.loads(line) for line in example.splitlines()]
            made_rows = [{"id": f"c{i}_{j}", "sequence": r["sequence"]} for i in range(30) for j, r in enumerate(rows)]
            path.write_text("".join(json.dumps(row) + "\n" for row in made_rows))
    return path


def _given(folder: Path) -> dict[str, bytes]:
    """Files of a result that do not tell how long it took."""
    return {name: content for name, content in product.digests(folder).items() if "summary" not in name}


def register_killed(bench: Bench, _: int) -> list[str]:
    """Kill a registration; then every version there is can be exported, and the next registration works."""
    run, name = bench.made.undisturbed("vdj"), NAMES["vdj"]
    before, start = _versions(bench.made, name), time.monotonic()
    if not before:
        bench.made.must("register", "vdj", "--run", run.out)
        (bench.made.root / "register.seconds").write_text(str(time.monotonic() - start))
        before = _versions(bench.made, name)
    seconds, found = float((bench.made.root / "register.seconds").read_text()), ["it ended first, three times"]
    for _attempt in range(3):
        child = bench.made.start("register", "vdj", "--run", run.out)
        time.sleep(seconds * bench.random.uniform(0.3, 1.0))
        if child.has_ended:
            continue
        found = child.kill()
        for number, tags in _versions(bench.made, name).items():
            if number not in before:
                found += [] if tags.get("room") == "vdj" else [f"version {number} has no tag room: {tags}"]
                folder = bench.made.fresh("exported")
                found += bench.made.start("export", f"models:/{name}/{number}", folder).expect(0)
        again = bench.made.start("register", "vdj", "--run", run.out)
        found += again.expect(0)
        if f"models:/{name}/{max(map(int, _versions(bench.made, name)), default=0)}" not in again.said:
            found.append(f"the next registration says {again.said[-200:]}")
        break
    return found


def _client(made: product.Product) -> Any:
    """Client of the tracking store of a product."""
    os.environ.update(made.tracking)
    from seqmodels.registry import store

    return store.connect()


def _versions(made: product.Product, name: str) -> dict[str, dict[str, str]]:
    """Versions of a registered model with their tags."""
    found = _client(made).search_model_versions(f"name = '{name}'")
    return {str(one.version): dict(one.tags) for one in found}


def promoted_at_once(bench: Bench, _: int, on_server: bool) -> list[str]:
    """Promote two versions at once, of which the second is the better: it must be the champion, whoever was first."""
    made, name = bench.on_server() if on_server else bench.made, NAMES["vdj"]
    opened = _client(made)
    if len(_versions(made, name)) < 3 or not (made.root / "promotable").exists():
        _three_versions(made, opened)
    first = json.loads((made.root / "promotable").read_text())
    opened.set_registered_model_alias(name, "champion", first[0])
    if "previous" in opened.get_registered_model(name).aliases:
        opened.delete_registered_model_alias(name, "previous")
    children = [made.start("promote", name, "--version", version) for version in first[1:]]
    found = children[0].expect(0, 2) + children[1].expect(0)
    if children[0].wait() == 2 and "must not be worse than that of the champion" not in children[0].said:
        found.append(f"version {first[1]} was refused for another reason: {children[0].said[-200:]}")
    aliases = {key: str(value) for key, value in opened.get_registered_model(name).aliases.items()}
    if aliases.get("champion") != first[2]:
        found.append(f"champion is version {aliases.get('champion')}, the best is {first[2]}")
    previous = first[1] if children[0].wait() == 0 else first[0]
    if aliases.get("previous") != previous:
        found.append(f"previous is version {aliases.get('previous')}, before it was {previous}")
    return found


def _three_versions(made: product.Product, opened: Any) -> None:
    """Register three runs of vdj whose headline metric rises."""
    versions = []
    for value in (0.1, 0.2, 0.3):
        out = made.fresh("vdj")
        if faults := made.train("vdj", out, "--set", "fit.bootstrap=0").expect(0):
            raise RuntimeError("; ".join(faults))
        run_id = product.read(out / "run.json")["run_id"]
        opened.log_metric(run_id, HEADLINE, value)
        opened.set_tag(run_id, "test.data.md5", "the same")
        versions.append(made.must("register", "vdj", "--run", run_id).said.split("/")[-1].strip())
    (made.root / "promotable").write_text(json.dumps(versions))


# ---- the table


def plan(rooms: Sequence[str], trials: int) -> list[tuple[str, int, str, Callable[[Bench, int], list[str]]]]:
    """Return name, number of trials, what must hold, and function of every fault."""
    same = "exit 0 after --resume, same metrics bit for bit, no checkpoint lost, nothing half-written or left behind"
    told = "training ends, files complete; the command that it tells sends them"
    made: list[tuple[str, int, str, Callable[[Bench, int], list[str]]]] = [
        ("server: tracking server killed in training", min(trials, 3), told, server_stops),
        ("server: PostgreSQL restarts in training", min(trials, 3), "FINISHED, all metrics", database_restarts),
    ]
    for where, on_server in (("embedded store", False), ("server", True)):
        must = "the better is champion, the one before previous; no traceback"
        made.append((f"promote: two at once, {where}", 10, must, lambda b, n, on=on_server: promoted_at_once(b, n, on)))
    full = f"exit 2 in one line; then {same}"
    for room in rooms:
        made.append((f"disk: full, {room}", min(trials, 4), full, lambda b, n, r=room: disk_is_full(b, n, r)))
    for room in rooms:
        made.append((f"kill: train {room}", trials, same, lambda b, n, r=room: trainer_killed(b, n, r)))
        if room in ("reads", "enhancer"):
            made.append(
                (f"kill: use of {room}", min(trials, 5), "same files", lambda b, n, r=room: use_killed(b, n, r))
            )
    made.append(("kill: register vdj", min(trials, 5), "no half version; the next works", register_killed))
    return made


def run(bench: Bench, name: str, trials: int, must: str, fault: Callable[[Bench, int], list[str]]) -> Row:
    """Inject one fault as often as asked for; every complaint is told at once."""
    start, complaints = time.monotonic(), []
    try:
        for number in range(trials):
            complaints.append(fault(bench, number))
            for one in complaints[-1]:
                sys.stderr.write(f"{name}, trial {number}: {one}\n")
    except Skipped as reason:
        return Row(name, must, complaints, time.monotonic() - start, f"skipped: {reason}")
    return Row(name, must, complaints, time.monotonic() - start)


def main() -> int:
    """Inject the faults asked for, and print the table; 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="kills of each trainer")
    parser.add_argument("--rooms", default=",".join(ROOMS))
    parser.add_argument("--only", default="", help="faults whose name has this text")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", default="", metavar="DIR", help="work here and leave everything")
    asked = parser.parse_args()
    rows = []
    with contextlib.ExitStack() as opened:
        root = Path(
            asked.keep or opened.enter_context(tempfile.TemporaryDirectory(prefix="seqmodels-faults-"))
        ).resolve()
        root.mkdir(parents=True, exist_ok=True)
        embedded = product.Product(root, {"MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"})
        bench = Bench(embedded, asked.trials, np.random.default_rng(asked.seed), opened)
        for name, trials, must, fault in plan(asked.rooms.split(","), asked.trials):
            if asked.only in name:
                rows.append(run(bench, name, trials, must, fault))
                sys.stderr.write(" | ".join(rows[-1].cells()) + "\n")
    head = ["| fault | trials | what must hold | held | seconds |", "|---|---|---|---|---|"]
    sys.stdout.write("\n".join([*head, *(f"| {' | '.join(row.cells())} |" for row in rows)]) + "\n")
    return int(any(found for row in rows for found in row.complaints))


if __name__ == "__main__":
    sys.exit(main())
