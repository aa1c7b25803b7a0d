"""Faults of commands that use, register and promote models; see ``faults.py``."""

import json
import os
import time
from pathlib import Path
from typing import Any

import product

VDJ = "vdj-twostep-em"
HEADLINE = "test.below_null"
_REFUSED = 3  # exit status where a gate is missed


def use_killed(bench: product.Bench, _: int, family: str) -> list[str]:
    """Kill an annotation or scoring, and go on.

    The same files, and nothing half-written before.
    """
    undisturbed, verb = (
        bench.made.undisturbed(family),
        {"reads": "annotate", "enhancer": "score"}[family],
    )
    source = _input(bench.made, family)
    words: list[str | Path] = [verb, family, source, "--model", undisturbed.out / "model", "--out"]
    wanted, done = (
        bench.made.root / f"{verb}-{family}",
        bench.made.root / f"{verb}-{family}.seconds",
    )
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
        found = child.kill()
        if not out.exists():  # else it was killed at its very end
            found += bench.made.start(*words, out, "--resume").expect(0)
        same, here = _given(wanted), _given(out)
        found += [
            f"another {name}"
            for name in sorted(same.keys() | here.keys())
            if same.get(name) != here.get(name)
        ]
        rest = [path.name for path in out.parent.glob(f".{out.name}*")]
        found += [f"left behind: {name}" for name in rest]
        break
    return found


def _input(made: product.Product, family: str) -> Path:
    """Write the example of the data many times over, so that there are chunks to lose."""
    name, suffix = {
        "reads": ("reads.fastq", ".fastq"),
        "enhancer": ("predictions_t1.jsonl", ".jsonl"),
    }[family]
    path = made.root / f"input-{family}{suffix}"
    if not path.is_file():
        lines = (made.data(family) / "example" / name).read_text().splitlines()
        if family == "reads":
            records = ["\n".join(lines[i : i + 4]) for i in range(0, len(lines), 4)]
            copies = [f"@c{copy}_{one[1:]}" for copy in range(500) for one in records]
        else:
            rows = [json.loads(line) for line in lines]
            copies = [
                json.dumps({"id": f"{copy}:{row['id']}", "sequence": row["pred_sequence"]})
                for copy in range(50)
                for row in rows
            ]
        path.write_text("\n".join(copies) + "\n")
    return path


def _given(folder: Path) -> dict[str, bytes]:
    """Files of a result that do not tell how long it took."""
    return {
        name: content for name, content in product.digests(folder).items() if "summary" not in name
    }


def register_killed(bench: product.Bench, _: int) -> list[str]:
    """Kill a registration.

    Then every version there is can be exported, and the next registration works.
    """
    run, name = bench.made.undisturbed("vdj"), VDJ
    before, start = _versions(bench.made, name), time.monotonic()
    if not before:
        bench.made.must("register", "vdj", "--run", run.out)
        (bench.made.root / "register.seconds").write_text(str(time.monotonic() - start))
        before = _versions(bench.made, name)
    seconds, found = (
        float((bench.made.root / "register.seconds").read_text()),
        ["it ended first, three times"],
    )
    for _attempt in range(3):
        child = bench.made.start("register", "vdj", "--run", run.out)
        time.sleep(seconds * bench.random.uniform(0.3, 1.0))
        if child.has_ended:
            continue
        found = child.kill()
        for number, tags in _versions(bench.made, name).items():
            if number not in before:
                found += (
                    []
                    if tags.get("family") == "vdj"
                    else [f"version {number} has no tag family: {tags}"]
                )
                folder = bench.made.fresh("exported")
                found += bench.made.start("export", f"models:/{name}/{number}", folder).expect(0)
        again = bench.made.start("register", "vdj", "--run", run.out)
        found += again.expect(0)
        if (
            f"models:/{name}/{max(map(int, _versions(bench.made, name)), default=0)}"
            not in again.said
        ):
            found.append(f"the next registration says {again.said[-200:]}")
        break
    return found


def _client(made: product.Product) -> Any:
    """Client of the tracking store of a product."""
    os.environ.update(made.tracking)
    from seqfoundry.registry import models

    return models.connect()


def _versions(made: product.Product, name: str) -> dict[str, dict[str, str]]:
    """Versions of a registered model with their tags."""
    found = _client(made).search_model_versions(f"name = '{name}'")
    return {str(one.version): dict(one.tags) for one in found}


def promoted_at_once(bench: product.Bench, _: int, on_server: bool) -> list[str]:
    """Promote two versions at once, of which the second is the better.

    It must be the champion, whoever was first.
    """
    made, name = bench.on_server() if on_server else bench.made, VDJ
    client = _client(made)
    if len(_versions(made, name)) < 3 or not (made.root / "promotable").exists():
        _three_versions(made, client)
    first = json.loads((made.root / "promotable").read_text())
    client.set_registered_model_alias(name, "champion", first[0])
    if "previous" in client.get_registered_model(name).aliases:
        client.delete_registered_model_alias(name, "previous")
    children = [made.start("promote", name, "--version", version) for version in first[1:]]
    found = children[0].expect(0, _REFUSED) + children[1].expect(0)
    if (
        children[0].wait() == _REFUSED
        and "must not be worse than that of the champion" not in children[0].said
    ):
        found.append(
            f"version {first[1]} was refused for another reason: {children[0].said[-200:]}"
        )
    aliases = {key: str(value) for key, value in client.get_registered_model(name).aliases.items()}
    if aliases.get("champion") != first[2]:
        found.append(f"champion is version {aliases.get('champion')}, the best is {first[2]}")
    previous = first[1] if children[0].wait() == 0 else first[0]
    if aliases.get("previous") != previous:
        found.append(f"previous is version {aliases.get('previous')}, before it was {previous}")
    return found


def _three_versions(made: product.Product, client: Any) -> None:
    """Register three runs of vdj whose headline metric rises."""
    versions = []
    for value in (0.1, 0.2, 0.3):
        out = made.fresh("vdj")
        if faults := made.train("vdj", out, "--set", "fit.bootstrap=0").expect(0):
            raise RuntimeError("; ".join(faults))
        run_id = product.read(out / "run.json")["run_id"]
        client.log_metric(run_id, HEADLINE, value)
        client.set_tag(run_id, "test.data.md5", "the same")
        versions.append(made.must("register", "vdj", "--run", run_id).said.split("/")[-1].strip())
    (made.root / "promotable").write_text(json.dumps(versions))
