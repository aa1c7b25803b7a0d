"""Inject faults into real processes of the product, and print what held. Not collected by pytest.

    nice python tests/server/faults.py [--trials N] [--families vdj,enhancer] [--only disk] [--seed
    S]

Every process is the command line with smoke settings, in scratch folders with a tracking store of
their own. Exit status 1 where something did not hold. The faults of servers need what ``stack.py``
needs, the full disk needs root."""

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faults_of_use as use
import numpy as np
import product
import stack

FAMILIES = ("reads", "copynumber", "enhancer", "vdj")
TOLERANCE = dict.fromkeys(
    FAMILIES, 0.0
)  # relative, of every final metric: bit for bit on one machine
REPEATED = {"vdj": 2}  # epochs that a resumed run does again by design; the others do none again
LONGER = ("--set", "fit.bootstrap=40")  # so that something is left to do when the server is back
_MIB = 1 << 20
Fault = Callable[[product.Bench, int], list[str]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``complaints`` has a list for each trial, empty where everything held.
    """

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


# ---- faults of servers


def server_stops(bench: product.Bench, _: int) -> list[str]:
    """Kill the tracking server once training goes on, and bring it back when training has told
    what to do."""
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
    told = re.search(
        r"send them with the same train command and (--resume \w+ --out \S+)", child.said
    )
    team.restart("mlflow")
    if told is None:
        return [*found, f"no command was told: {child.said[-300:]}"]
    again = made.start(*child.words[: child.words.index("--out")], *told[1].split(), *LONGER)
    return found + again.expect(0) + _compare(undisturbed, out) + _in_store(made, out)


def database_restarts(bench: product.Bench, _: int) -> list[str]:
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
    """Complaints where the run in the store is not finished, or lacks a metric, an iteration or
    a file."""
    run_id = product.read(out / "run.json")["run_id"]
    code = """
import json, sys
from seqfoundry.core.runs import tracking
client, run_id = tracking.connect(), sys.argv[1]
run = client.get_run(run_id)
def files(path=None):
    listed = client.list_artifacts(run_id, path)
    return [name for one in listed for name in (files(one.path) if one.is_dir else [one.path])]
steps = sorted({one.step for one in client.get_metric_history(run_id, "train.loss")})
answer = {"status": run.info.status, "metrics": run.data.metrics, "steps": steps, "files": files()}
print(json.dumps(answer))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, run_id],
        env=product.environment(made.tracking),
        cwd=stack.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    stored = json.loads(done.stdout.splitlines()[-1])
    found = [] if stored["status"] == "FINISHED" else [f"the run is {stored['status']}"]
    numbers = {
        k: v for k, v in product.read(out / "metrics.json").items() if isinstance(v, int | float)
    }
    found += product.differences(numbers, {k: stored["metrics"].get(k) for k in numbers}, 1e-12)
    wanted = list(range((product.last_epoch(out) or 0) + 1))
    if not set(wanted) <= set(stored["steps"]):
        found.append(f"iterations in the store: {stored['steps']}, wanted {wanted}")
    here = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    return found + [f"not in the store: {name}" for name in sorted(here - set(stored["files"]))]


# ---- faults of the machine


def disk_is_full(bench: product.Bench, number: int, family: str) -> list[str]:
    """Train where less space is left than the results need, then free it and go on."""
    undisturbed = bench.made.undisturbed(family)
    need = sum(path.stat().st_size for path in undisturbed.out.rglob("*") if path.is_file())
    place = bench.made.fresh("disk")
    place.mkdir()
    size = need * 3 + 16 * _MIB
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        raise product.Skipped(f"mount: {mounted.stderr.strip()}")
    try:
        left = int(need * (number + bench.random.uniform()) / bench.trials * 0.9)
        filler = place / "filler"
        with filler.open("wb") as file:
            _fill(file, size - left)
        out = place / "out"
        child = bench.made.train(family, out)
        found = child.expect(2) + _one_line(child.said) + product.broken(out)
        filler.unlink()
        return found + _go_on(bench, family, out, undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _fill(file: Any, size: int) -> None:
    """Write ``size`` bytes."""
    for start in range(0, size, _MIB):
        file.write(bytes(min(_MIB, size - start)))


def _one_line(said: str) -> list[str]:
    """Complaints where a refusal is not one line at the end."""
    lines = [line for line in said.splitlines() if line.startswith("seqfoundry: ")]
    return (
        []
        if len(lines) == 1 and said.rstrip().endswith(lines[0])
        else [f"no single line, got: {said[-300:]}"]
    )


def trainer_killed(bench: product.Bench, _: int, family: str) -> list[str]:
    """Kill a trainer at a random moment between the making of its folder and its end, and go
    on."""
    undisturbed, found = (
        bench.made.undisturbed(family),
        ["it ended before it was killed, three times"],
    )
    for _attempt in range(3):
        out = bench.made.fresh(family)
        child = bench.made.train(family, out)
        child.until(out.exists)
        time.sleep(bench.random.uniform(0, undisturbed.seconds))
        if not child.has_ended:
            found = child.kill() + product.broken(out) + _go_on(bench, family, out, undisturbed)
            break
    return found


def _go_on(
    bench: product.Bench, family: str, out: Path, undisturbed: product.Undisturbed
) -> list[str]:
    """Resume a run that was broken off (or begin, where it had not).

    Complaints about what it comes to.
    """
    run_id, before = product.read(out / "run.json").get("run_id"), product.last_epoch(out)
    had_checkpoint = any((out / "checkpoints").glob("last.*"))
    again = bench.made.train(family, out, *(["--resume", run_id] if run_id else []))
    found = again.expect(0)
    begun = product.first_epoch(again.said)
    if had_checkpoint and "begins anew" in again.said:
        found.append("a checkpoint was there, and training began anew")
    if before is not None and begun is not None and begun <= before - REPEATED.get(family, 0):
        found.append(f"epoch {before} was finished, and epoch {begun} was done again")
    if before is not None and not had_checkpoint:
        found.append(f"epoch {before} was finished, and there was no checkpoint")
    return (
        found + product.broken(out) + product.leftovers(out) + _compare(undisturbed, out, family)
    )


def _compare(undisturbed: product.Undisturbed, out: Path, family: str = "vdj") -> list[str]:
    """Complaints where a run lacks files or differs in its metrics."""
    here = {path.relative_to(out) for path in out.rglob("*")}
    wanted = {path.relative_to(undisturbed.out) for path in undisturbed.out.rglob("*")}
    found = [f"lacks {path}" for path in sorted(wanted - here)]
    return found + product.differences(
        undisturbed.metrics, product.read(out / "metrics.json"), TOLERANCE[family]
    )


# ---- the table


def plan(families: Sequence[str], trials: int) -> list[tuple[str, int, str, Fault]]:
    """Return name, number of trials, what must hold, and function of every fault."""
    same = (
        "exit 0 after --resume, same metrics bit for bit, no checkpoint lost, nothing "
        "half-written or left behind"
    )
    told = "training ends, files complete; the command that it tells sends them"
    one = "the better is champion, the one before previous; no traceback"
    few = min(trials, 5)
    made: list[tuple[str, int, str, Fault]] = [
        ("server: tracking server killed in training", few, told, server_stops),
        (
            "server: PostgreSQL restarts in training",
            few,
            "FINISHED, all metrics",
            database_restarts,
        ),
        (
            "promote: two at once, embedded store",
            10,
            one,
            partial(use.promoted_at_once, on_server=False),
        ),
        ("promote: two at once, server", 10, one, partial(use.promoted_at_once, on_server=True)),
    ]
    full = f"exit 2 in one line; then {same}"
    made += [
        (f"disk: full, {family}", few, full, partial(disk_is_full, family=family))
        for family in families
    ]
    made += [
        (f"kill: train {family}", trials, same, partial(trainer_killed, family=family))
        for family in families
    ]
    used = [family for family in families if family in ("reads", "enhancer")]
    made += [
        (f"kill: use of {family}", few, "same files", partial(use.use_killed, family=family))
        for family in used
    ]
    return [
        *made,
        ("kill: register vdj", few, "no half version; the next works", use.register_killed),
    ]


def run(bench: product.Bench, name: str, trials: int, must: str, fault: Fault) -> Row:
    """Inject one fault as often as asked for; every complaint is told at once."""
    start, complaints = time.monotonic(), []
    try:
        for number in range(trials):
            complaints.append(fault(bench, number))
            for one in complaints[-1]:
                sys.stderr.write(f"{name}, trial {number}: {one}\n")
    except product.Skipped as reason:
        return Row(name, must, complaints, time.monotonic() - start, f"skipped: {reason}")
    return Row(name, must, complaints, time.monotonic() - start)


def main() -> int:
    """Inject the faults asked for, and print the table; 1 where something did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20, help="kills of each trainer")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--only", default="", help="faults whose name has this text")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", default="", metavar="DIR", help="work here and leave everything")
    asked = parser.parse_args()
    rows = []
    with contextlib.ExitStack() as client:
        root = Path(
            asked.keep
            or client.enter_context(tempfile.TemporaryDirectory(prefix="seqfoundry-faults-"))
        ).resolve()
        root.mkdir(parents=True, exist_ok=True)
        embedded = product.Product(
            root, {"MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"}
        )
        bench = product.Bench(embedded, asked.trials, np.random.default_rng(asked.seed), client)
        for name, trials, must, fault in plan(asked.families.split(","), asked.trials):
            if asked.only in name:
                rows.append(run(bench, name, trials, must, fault))
                sys.stderr.write(" | ".join(rows[-1].cells()) + "\n")
    head = ["| fault | trials | what must hold | held | seconds |", "|---|---|---|---|---|"]
    sys.stdout.write(
        "\n".join([*head, *(f"| {' | '.join(row.cells())} |" for row in rows)]) + "\n"
    )
    return int(any(found for row in rows for found in row.complaints))


if __name__ == "__main__":
    sys.exit(main())
