"""The command line: parse, resolve, call one function, print its result.

Exit status: 0 fine, 2 the user's input or settings (one clear line), 3 a version that may not become the champion, 143
stopped on request after saving, 1 a fault of ours (with a traceback). Frameworks are imported only by the verb that
needs them.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from seqfoundry import __version__
from seqfoundry.core import refusals, terminal
from seqfoundry.core.errors import InterruptedRunError, SeqfoundryError
from seqfoundry.registry.rooms import ROOMS

STOPPED = 143  # 128 + SIGTERM, as a shell reports it


class _Parser(argparse.ArgumentParser):
    """Report a wrong command line in one line, like every other fault of the user's."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Build the parser: one sub-command for each verb."""
    top = _Parser(prog="seqfoundry", description="Train, track, version and serve sequencing models.")
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    _add_data(verbs)
    _add_room_verbs(verbs)
    _add_registry_verbs(verbs)
    _add_use_verbs(verbs)
    return top


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], Any], text: str, *, room: bool = True) -> Any:
    made = verbs.add_parser(name, help=text, description=text)
    made.set_defaults(run=run)
    if room:
        able = [one for one in ROOMS if name in ROOMS[one]] or list(ROOMS)
        made.add_argument("room", metavar="ROOM", help=f"one of: {', '.join(able)}")
    return made


def _text(text: str) -> str:
    """Read a text that must not be empty, as an unset parameter of MLproject or a shell variable would make it."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _required(text: str) -> Path:
    """Read a path that must not be empty: Python would take that for the working directory."""
    return Path(_text(text))


def _path(text: str) -> Path | None:
    """Read an optional path; MLproject hands over an empty text for "not given"."""
    return Path(text) if text else None


def _yes(text: str) -> bool:
    """Read a flag from a value; MLproject hands over an empty text for "not given"."""
    if text not in ("", "no", "yes"):
        raise argparse.ArgumentTypeError(f"must be yes, no or empty, got {text!r}")
    return text == "yes"


def _add_data(verbs: Any) -> None:
    data = _verb(verbs, "data", _data, "make data/ from params/, or compare it with data.dvc", room=False)
    data.add_argument("action", choices=("build", "check"))
    data.add_argument("room", nargs="?", default="", metavar="ROOM", help="one room only (build)")
    data.add_argument("--update", action="store_true", help="build, and pin what was built in data.dvc")


def _add_room_verbs(verbs: Any) -> None:
    simulate = _verb(verbs, "simulate", _simulate, "write data with known truth")
    simulate.add_argument("--transcriptome", default="", metavar="FASTA", help="cDNA from here (reads)")
    train = _verb(verbs, "train", _train, "train a model as one tracked run")
    for made in (simulate, train):
        made.add_argument("--params", type=_required, required=True, help="settings file")
        made.add_argument("--set", default="", dest="overrides", metavar='"k=v a.b=w"', help="settings that win")
    simulate.add_argument("--out", type=_required, required=True, help="folder to write")
    train.add_argument("--data", type=_path, default=None, help="folder with data (default: data/ROOM)")
    train.add_argument("--out", type=_path, default=None, help="folder to write (default: build/ROOM/runs/RUN_ID)")
    device = "auto: a GPU where there is one; gpu insists on it"
    train.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help=device)
    train.add_argument("--resume", default="", metavar="RUN_ID", help="continue this run from its last checkpoint")
    train.add_argument("--no-track", action="store_true", help="write files only, no tracking store")
    train.add_argument("--overwrite", action="store_true", help="replace another run's results in --out")
    prepare = _verb(verbs, "prepare", _prepare, "turn real input into the form that training reads")
    what = "vdj: tables of rearrangements; copynumber: read counts, folders of them, or stores; enhancer: rows"
    prepare.add_argument("inputs", type=_required, nargs="+", metavar="INPUT", help=what)
    prepare.add_argument("--params", type=_required, required=True, help="settings file")
    prepare.add_argument("--set", default="", dest="overrides", metavar='"k=v a.b=w"', help="settings that win")
    prepare.add_argument("--out", type=_required, required=True, help="folder to write")
    prepare.add_argument("--germline", type=_path, default=None, metavar="FILE", help="genes (vdj)")
    form = "of the input, if it does not tell (vdj: airr, immunoseq, parsimony, igor; copynumber: gatk, mosdepth, tsv)"
    prepare.add_argument("--format", default="", dest="form", help=form)
    evaluate = _verb(verbs, "evaluate", _evaluate, "measure a model on data it was not trained on")
    evaluate.add_argument("--model", type=_text, required=True, help="folder, models:/NAME@ALIAS or run id")
    evaluate.add_argument("--data", type=_path, default=None, help="folder with data (default: data/ROOM)")
    evaluate.add_argument("--out", type=_required, required=True, help="folder to write")


def _add_registry_verbs(verbs: Any) -> None:
    register = _verb(verbs, "register", _register, "make a finished run's model a version, alias candidate")
    register.add_argument("--run", type=_text, required=True, dest="run_id", help="run id, or a folder with run.json")
    promote = _verb(
        verbs, "promote", _promote, "make the candidate the champion, or exit 3 if it misses its gates", room=False
    )
    promote.add_argument("name", type=_text, help="registered model")
    promote.add_argument("--version", default="", help="another version than the candidate")
    promote.add_argument("--force", action="store_true", help="promote whatever the gates say; recorded as a tag")
    models = _verb(verbs, "models", _models, "list registered models, or the columns of one", room=False)
    models.add_argument("uri", nargs="?", default="", metavar="URI", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    export = _verb(verbs, "export", _export, "write a registered model as a self-contained folder", room=False)
    export.add_argument("uri", type=_text, metavar="URI", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    export.add_argument("folder", type=_required, metavar="DIR", help="folder to write")


def _add_use_verbs(verbs: Any) -> None:
    annotate = _verb(verbs, "annotate", _annotate, "add a model's columns to the user's data")
    annotate.add_argument(
        "input", type=_required, metavar="INPUT", help="reads: FASTQ or FASTA; copynumber: read counts; or a folder"
    )
    annotate.add_argument("--model", type=_text, required=True, help="folder, models:/NAME@ALIAS or run id")
    annotate.add_argument("--out", type=_required, required=True, help="folder to write")
    annotate.add_argument(
        "--whitelist", type=_path, default=None, metavar="FILE", help="barcodes that may occur (reads)"
    )
    _add_flag(annotate, "--overwrite", "replace earlier results in --out")
    _add_flag(annotate, "--resume", "go on with an annotation that was interrupted")
    _add_engine(annotate)
    score = _verb(verbs, "score", _score, "numbers for the user's sequences")
    what = "vdj: table of rearrangements; enhancer: sequences, or predictions.jsonl (t1, t3, cross-oracle)"
    score.add_argument("input", type=_required, metavar="INPUT", help=what)
    score.add_argument("--model", type=_text, required=True, help="folder, models:/NAME@ALIAS or run id")
    score.add_argument("--out", type=_required, required=True, help="folder to write")
    _add_flag(score, "--overwrite", "replace earlier results in --out")
    _add_flag(score, "--resume", "go on with scores that were interrupted (vdj; enhancer: activity)")
    tasks = "enhancer: activity, t1, t3, cross-oracle, variants, mutagenesis, attribution, calibration, export"
    score.add_argument("--task", default="", help=f"what to score; {tasks}")
    others = "further models (cross-oracle); several may stand in one word"
    score.add_argument("--against", nargs="*", default=(), metavar="MODEL", help=others)
    _add_engine(score)
    main = _verb(verbs, "main", _main, "every step of every room, from data to first annotations", room=False)
    main.add_argument("--profile", default="demo", help="settings: params/ROOM/PROFILE.yaml")
    main.add_argument("--again", action="store_true", help="also what is already done")


def _add_flag(made: Any, name: str, text: str) -> None:
    """Add a flag, and beside it ``NAME-if VALUE`` for MLproject, whose parameters always have a value."""
    made.add_argument(name, action="store_true", help=text)
    own = {"dest": name.removeprefix("--"), "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    made.add_argument(f"{name}-if", type=_yes, metavar="yes", **own)


def _add_engine(made: Any) -> None:
    made.add_argument("--engine", choices=("local", "spark"), default="local", help="spark: takes Parquet too")
    made.add_argument("--master", default="", metavar="URL", help="of Spark (default: local[*,4], all cores here)")


def _data(args: argparse.Namespace) -> Any:
    from seqfoundry.core.errors import InputError
    from seqfoundry.registry import dataset

    if args.action == "build":
        return dataset.build(args.room or None, update=args.update)
    if args.room or args.update:
        raise InputError(f"data check: must stand alone, got {args.room or '--update'}; it compares all of data/")
    return dataset.check()


def _simulate(args: argparse.Namespace) -> Any:
    from seqfoundry.core.data import folder_written_whole
    from seqfoundry.registry import rooms

    rooms.check(args.room, "simulate")
    overrides = args.overrides
    if args.transcriptome:
        path = json.dumps(
            str(Path(args.transcriptome).resolve()), ensure_ascii=False
        )  # quoted for YAML, then the shell
        overrides += " " + shlex.quote(f"simulate.transcriptome={path}")
    config = rooms.settings(args.room, args.params, overrides)
    with folder_written_whole(args.out) as folder:
        return rooms.part(args.room, "simulate").simulate(config, folder)


def _prepare(args: argparse.Namespace) -> Any:
    from seqfoundry.registry import rooms

    rooms.check(args.room, "prepare")
    config = rooms.settings(args.room, args.params, args.overrides)
    return rooms.part(args.room, "data").prepare(config, args.inputs, args.germline, args.out, args.form or None)


def _train(args: argparse.Namespace) -> Any:
    from seqfoundry.core import provenance
    from seqfoundry.core.loop import TrainOptions
    from seqfoundry.registry import dataset, rooms

    rooms.check(args.room, "train")
    rooms.check_processes(args.room)
    config = rooms.settings(args.room, args.params, args.overrides)
    has_own = args.data is None and hasattr(config, "store_path") and config.store_path  # the settings name their data
    data = None if has_own else dataset.ensure(args.room, args.data)
    as_read = provenance.settings_digest(config)
    options = TrainOptions(args.device, args.resume or None, not args.no_track, args.overwrite, as_read)
    return rooms.part(args.room, "train").train(config, data, args.out, options)


def _evaluate(args: argparse.Namespace) -> Any:
    from seqfoundry.registry import dataset, promotion, rooms

    rooms.check(args.room, "evaluate")
    metrics = promotion.evaluate(args.room, args.model, dataset.ensure(args.room, args.data), args.out)
    shown = {key: value for key, value in metrics.items() if not key.endswith((".low", ".high"))}
    return {**shown, "report": str(args.out / "evaluation.txt")}


def _register(args: argparse.Namespace) -> Any:
    from seqfoundry.registry import store

    return store.register(args.room, store.run_id_of(args.run_id))


def _promote(args: argparse.Namespace) -> Any:
    from seqfoundry.registry import promotion

    return promotion.promote(args.name, version=args.version or None, force=args.force)


def _models(args: argparse.Namespace) -> Any:
    from seqfoundry.core.report import text_table
    from seqfoundry.registry import catalogue

    if args.uri:
        sides = catalogue.columns(args.uri)
        return text_table(["side", "column", "type"], [[side, *column] for side in sides for column in sides[side]])
    rows = catalogue.models()
    return text_table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "no registered models"


def _export(args: argparse.Namespace) -> Any:
    from seqfoundry.registry import store

    store.export(args.uri, args.folder)
    return str(args.folder)


def _is_spark(args: argparse.Namespace) -> bool:
    from seqfoundry.core.errors import InputError

    if args.engine == "local" and args.master:
        raise InputError(f"--master: must be given with --engine spark only, got {args.master}")
    return bool(args.engine == "spark")


def _on_spark(args: argparse.Namespace, **options: Any) -> Any:
    from seqfoundry.apply import spark

    options |= {"overwrite": args.overwrite, "resume": args.resume}
    place = args.master or spark.HERE
    return spark.run(args.room, args.input, model=args.model, out=args.out, master=place, **options)


def _annotate(args: argparse.Namespace) -> Any:
    from seqfoundry.core.errors import InputError
    from seqfoundry.registry import rooms

    rooms.check(args.room, "annotate")
    if args.room == "copynumber" and args.whitelist:
        raise InputError("annotate copynumber: must not be given --whitelist, which is for reads")
    if _is_spark(args):
        return _on_spark(args, whitelist=args.whitelist)
    if args.room == "copynumber":
        from seqfoundry.apply import depth

        words = {"overwrite": args.overwrite, "resume": args.resume}
        return depth.annotate(args.room, args.input, model=args.model, out=args.out, **words)
    from seqfoundry.apply import annotate

    return annotate.annotate(
        args.room,
        args.input,
        model=args.model,
        out=args.out,
        whitelist=args.whitelist,
        overwrite=args.overwrite,
        resume=args.resume,
    )


def _score(args: argparse.Namespace) -> Any:
    from seqfoundry.apply import score
    from seqfoundry.core.data import is_there
    from seqfoundry.core.errors import InputError
    from seqfoundry.registry import rooms

    rooms.check(args.room, "score")
    against = [word for text in args.against for word in ([text] if text and is_there(Path(text)) else text.split())]
    if _is_spark(args):
        first = next(iter(score.TASKS[args.room]))
        if args.task not in ("", first) or against:
            got = f"--against {' '.join(against)}" if against else f"--task {args.task}"
            does = f"--task {first} of score {args.room}" if first else f"score {args.room} without --task"
            raise InputError(f"--engine spark: does {does} only, without --against, got {got}")
        return _on_spark(args)
    asked = score.Asked(args.task, tuple(against), args.resume)
    return score.score(args.room, args.input, model=args.model, out=args.out, overwrite=args.overwrite, asked=asked)


def _main(args: argparse.Namespace) -> Any:
    from seqfoundry.apply import pipeline

    return pipeline.run_all(args.profile, again=args.again)


def _of_surroundings(error: Exception) -> str:
    """Say in one line what a store or the locale has to do with an error; empty for a fault of ours."""
    if refusals.of_a_store(error):  # a traceback would show a login in the URI
        return f"tracking store: must do what was asked, got: {refusals.reason(error)}"
    if isinstance(error, UnicodeEncodeError):
        must = f"must be text of the locale ({sys.getfilesystemencoding()})"
        return f"{error.object[:300]!a}: {must}; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status."""
    terminal.set_up()
    args = parser().parse_args(argv)
    try:
        result = args.run(args)
    except InterruptedRunError as error:
        print(f"seqfoundry: {terminal.message(error)}", file=sys.stderr)
        return STOPPED
    except SeqfoundryError as error:
        print(f"seqfoundry: {terminal.message(error)}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("seqfoundry: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if not (told := _of_surroundings(error)):
            raise
        print(f"seqfoundry: {told}", file=sys.stderr)
        return SeqfoundryError.status
    if result:  # a process that only helped another has none
        print(result if isinstance(result, str) else json.dumps(result, indent=1))
    return 0


def entry() -> NoReturn:
    """Run as the console command."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
