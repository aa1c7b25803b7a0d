"""The command line: verbs, and under each the families that have it.

Exit status: 0 fine, 2 the user's input or settings (one clear line), 3 a version that may not
become the champion, 143 stopped on request after saving, 1 a fault of ours (with a traceback).
Help imports no framework: a family's commands are imported when one of them is asked for, and a
command imports its work when it runs.
"""

import dataclasses
import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from seqfoundry import __version__
from seqfoundry.core import command_line
from seqfoundry.core.command_line import did_you_mean
from seqfoundry.core.errors import InputError, InterruptedRunError, SeqfoundryError
from seqfoundry.core.family import all_families, find_family
from seqfoundry.core.runs import logging_setup, store_errors

STOPPED = 143  # 128 + SIGTERM, as a shell reports it
PROGRAM = "seqfoundry"

FAMILY_VERBS = {
    "simulate": "Write data with known truth.",
    "prepare": "Turn real input into the form that training reads.",
    "train": "Train a model as one tracked run.",
    "evaluate": "Measure a model on data that it was not trained on.",
    "annotate": "Add a model's columns to your data.",
    "score": "Give numbers for your sequences or rearrangements.",
}


class _Verb(click.Group):
    """A verb, under which each family that has it has a command of its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, family in all_families().items() if self.name in family.verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(find_family(cmd_name).module("commands"), str(self.name))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the families without importing their commands."""
        rows = [(name, all_families()[name].summary) for name in self.list_commands(ctx)]
        with formatter.section("Families"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name and not name.startswith("-") and name not in self.list_commands(ctx):
            words = self.list_commands(ctx)
            if name in all_families():
                raise click.UsageError(
                    f"must be one of {', '.join(words)}, got {name!r}, which has no {self.name}",
                    ctx,
                )
            raise click.UsageError(
                f"family: must be one of {', '.join(words)}, got "
                f"{name!r}{did_you_mean(name, words)}",
                ctx,
            )
        return super().resolve_command(ctx, args)


class _Program(click.Group):
    """All verbs; a typo is answered with the nearest."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name and not name.startswith("-") and name not in self.commands:
            raise click.UsageError(
                f"must be a verb, got {name!r}{did_you_mean(name, list(self.commands))}", ctx
            )
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 99}
)
@click.version_option(__version__, message="%(version)s")
def program() -> None:
    """Train, track, version and serve sequencing models.

    `seqfoundry VERB --help` lists the families, `seqfoundry VERB FAMILY --help` the options.
    """


@program.command("data")
@command_line.argument(
    "action", type=command_line.Choice(("build", "check")), help="Build data/, or compare it."
)
@command_line.argument("family", required=False, help="One family only (build).")
@command_line.flag("--update", help="Build anew, and pin what was built in data.dvc.")
def data(action: str, family: str | None, update: bool) -> Any:
    """Make data/ from params/, or compare it with data.dvc."""
    from seqfoundry.registry import dataset

    if action == "build":
        return dataset.build(family, update=update)
    if family or update:
        raise InputError(
            f"data check: must stand alone, got {family or '--update'}; it compares all of data/"
        )
    return dataset.check()


for _verb, _help in FAMILY_VERBS.items():
    program.add_command(_Verb(_verb, help=_help, short_help=_help))


@program.command("register")
@command_line.argument("family", required=False, help="A family; not needed with --zoo.")
@command_line.option("--run", metavar="RUN", help="A run id, or a folder with run.json.")
@command_line.option("--zoo", "zoo_name", metavar="NAME", help="A model of the zoo.")
def register(family: str | None, run: str | None, zoo_name: str | None) -> Any:
    """Make a finished run's model a version with the alias candidate."""
    from seqfoundry.registry import models, zoo

    if (run is None) == (zoo_name is None):
        raise InputError("register: must be given either --run or --zoo, got both or neither")
    if zoo_name is not None:
        entry = zoo.find_entry(zoo_name.removeprefix(zoo.PREFIX))
        if family not in (None, entry.family):
            raise InputError(f"register: zoo:{entry.name} is of {entry.family}, got {family}")
        return models.register(entry.family, zoo.create_run(entry))
    if family is None:
        raise InputError("register: must be given a family with --run, got none")
    return models.register(find_family(family).name, models.run_id_of(str(run)))


@program.command("zoo")
@command_line.argument("names", nargs=-1, required=False, help="Models of the zoo.")
@command_line.flag("--build", help="Train, evaluate and record them anew (make zoo).")
def zoo(names: tuple[str, ...], build: bool) -> Any:
    """List the small trained models that are used as they are, or show their records.

    Use one with --model zoo:NAME; register one with: seqfoundry register --zoo NAME.
    """
    from seqfoundry.core.reporting.html import text_table
    from seqfoundry.registry import zoo as entries

    if build:
        return {"built": entries.build(names)}
    if names:
        return {name: dataclasses.asdict(entries.find_entry(name)) for name in names}
    rows = [
        [f"zoo:{entry.name}", entry.family, _headline_of(entry), entry.about]
        for entry in entries.read_entries().values()
    ]
    return text_table(["model", "family", "measured on simulated data", "what it does"], rows)


def _headline_of(entry: Any) -> str:
    """Write the headline metric of a model of the zoo, with its 95 % interval."""
    name = entry.settings["headline"]
    text = f"{name} {entry.metrics[name]:.4g}"
    if f"{name}.low" not in entry.metrics:
        return text
    return f"{text} ({entry.metrics[f'{name}.low']:.4g} to {entry.metrics[f'{name}.high']:.4g})"


@program.command("promote")
@command_line.argument("name", help="A registered model.")
@command_line.option("--version", metavar="N", help="Another version than the candidate.")
@command_line.flag("--force", help="Promote whatever the gates say; recorded as a tag.")
def promote(name: str, version: str | None, force: bool) -> Any:
    """Make the candidate the champion, or exit 3 if it misses its gates."""
    from seqfoundry.registry import promotion

    return promotion.promote(name, version=version, force=force)


@program.command("models")
@command_line.argument("uri", required=False, help="models:/NAME@ALIAS or models:/NAME/VERSION.")
def models(uri: str | None) -> Any:
    """List registered models, or the columns of one."""
    from seqfoundry.core.reporting.html import text_table
    from seqfoundry.registry import listing

    if uri:
        sides = listing.columns(uri)
        rows = [[side, *column] for side in sides for column in sides[side]]
        return text_table(["side", "column", "type"], rows)
    listed = listing.models()
    if not listed:
        return "no registered models"
    return text_table(list(listed[0]), [list(row.values()) for row in listed])


@program.command("export")
@command_line.argument("uri", help="models:/NAME@ALIAS or models:/NAME/VERSION.")
@command_line.argument("folder", type=command_line.PATH, metavar="DIR", help="Folder to write.")
def export(uri: str, folder: Path) -> Any:
    """Write a registered model as a self-contained folder."""
    from seqfoundry.registry import models as store

    store.export(uri, folder)
    return str(folder)


def _run_demo(profile: str, again: bool) -> Any:
    from seqfoundry import demo

    return demo.run_all(profile, again=again)


def _demo_command(name: str, *, hidden: bool) -> click.Command:
    profile = command_line.option(
        "--profile", default="demo", help="Settings: params/FAMILY/PROFILE.yaml."
    )
    again = command_line.flag("--again", help="Also what is already done.")
    text = "Go the whole way with every family, from data to first answers."
    return command_line.command(name, help=text, hidden=hidden)(profile(again(_run_demo)))


program.add_command(_demo_command("demo", hidden=False))
program.add_command(_demo_command("main", hidden=True))


def _explain_surroundings(error: Exception) -> str:
    """Say in one line what a store or the locale has to do with an error.

    Empty for a fault of ours.
    """
    if store_errors.is_store_error(error):  # a traceback would show a login in the URI
        return f"tracking store: must do what was asked, got: {store_errors.explain(error)}"
    if isinstance(error, UnicodeEncodeError):
        must = f"must be text of the locale ({sys.getfilesystemencoding()})"
        return f"{error.object[:300]!a}: {must}; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    if isinstance(error, OSError) and _is_full(error):
        place = error.filename or "the output's disk"
        return f"{place}: must have space, got: no space left; free some, and go on with --resume"
    return ""


def _is_full(error: OSError) -> bool:
    """Tell whether a disk or a quota is full; libraries do not always say so by number."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _explain_usage(error: click.ClickException) -> str:
    """Write a fault of the command line in one line that names the command."""
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else PROGRAM
    text = " ".join(error.format_message().split())
    return f"{path}: {text}; see {path} --help"


def _fail(message: str, status: int) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    logging_setup.set_up()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        result = program.main(words, prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return SeqfoundryError.status
    except click.ClickException as error:
        print(_explain_usage(error), file=sys.stderr)
        return SeqfoundryError.status
    except InterruptedRunError as error:
        return _fail(logging_setup.message(error), STOPPED)
    except SeqfoundryError as error:
        return _fail(logging_setup.message(error), error.status)
    except (KeyboardInterrupt, click.Abort):
        return _fail("stopped", 130)
    except Exception as error:
        explanation = _explain_surroundings(error)
        if not explanation:
            raise
        return _fail(explanation, SeqfoundryError.status)
    if result:  # a process that only helped another has none
        print(result if isinstance(result, str) else json.dumps(result, indent=1))
    return 0


def entry() -> NoReturn:
    """Run as the console command."""
    sys.exit(main())
