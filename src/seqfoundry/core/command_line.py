"""The form of commands, and the options that mean the same in all families.

MLproject has no absent parameters: an option or argument whose value is an empty text counts as
not given.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


def _is_empty(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return bool(value) and all(part == "" for part in value)
    return bool(value == "")


class _EmptyIsAbsent(click.Parameter):
    """A parameter for which an empty text means that it was not given."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, Any]:
        value, source = super().consume_value(ctx, opts)
        if _is_empty(value):
            other_options = {name: given for name, given in opts.items() if name != self.name}
            return super().consume_value(ctx, other_options)
        if isinstance(value, tuple | list):
            value = tuple(part for part in value if part != "")
        return value, source


class Option(_EmptyIsAbsent, click.Option):
    """An option for which an empty text means that it was not given."""


class Argument(_EmptyIsAbsent, click.Argument):
    """An argument for which an empty text means that it was not given."""


class YesNo(click.ParamType[bool]):
    """A flag that MLproject can give as a value: yes or no."""

    name = "yes|no"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bool:
        if isinstance(value, bool):
            return value
        if value not in ("yes", "no"):
            self.fail(f"must be yes, no or empty, got {value!r}", param, ctx)
        return bool(value == "yes")


class Choice(click.Choice[str]):
    """One of several words; a typo is answered with the nearest."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        hint = did_you_mean(str(value), self.choices)
        return f"must be one of {', '.join(self.choices)}, got {value!r}{hint}"


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """End of a message that names the nearest of some words; empty if none is near."""
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def command(name: str, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command; its docstring is the help."""
    return click.command(name, **settings)


def argument(name: str, **settings: Any) -> Callable[[Function], Function]:
    """Add an argument."""
    return click.argument(name, cls=Argument, **settings)


def option(*names: str, **settings: Any) -> Callable[[Function], Function]:
    """Add an option; its default is shown."""
    return click.option(
        *names, cls=Option, show_default=settings.pop("show_default", True), **settings
    )


def flag(*names: str, help: str) -> Callable[[Function], Function]:
    """Add a flag: ``--name``, or from MLproject ``--name yes``."""
    settings = {"is_flag": False, "flag_value": "yes", "default": False, "show_default": False}
    return option(*names, type=YesNo(), metavar="", help=help, **settings)


def _join(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> str:
    return " ".join(words)


#: Type of a path that the command itself checks.
PATH = click.Path(path_type=Path)

params = option("--params", type=PATH, required=True, metavar="FILE", help="Settings file.")
overrides = option(
    "--set",
    "overrides",
    multiple=True,
    callback=_join,
    metavar='"K=V A.B=W"',
    help="Settings that win over the file; may be repeated.",
)
out = option("--out", type=PATH, required=True, metavar="DIR", help="Folder to write.")
data = option("--data", type=PATH, metavar="DIR", help="Folder with data (default: data/FAMILY).")
model = option(
    "--model",
    required=True,
    help="A model folder, models:/NAME@ALIAS, models:/NAME/VERSION, a run id or zoo:NAME.",
)
device = option(
    "--device",
    type=Choice(("auto", "cpu", "gpu")),
    default="auto",
    help="auto takes a GPU where there is one; gpu insists on it.",
)
overwrite = flag("--overwrite", help="Replace earlier results in --out.")
no_track = flag("--no-track", help="Write files only; use no tracking store.")
resume = flag("--resume", help="Go on with work that was interrupted.")
resume_run = option(
    "--resume",
    "resume_run",
    metavar="RUN_ID|auto",
    help="Continue this run, or the unfinished run of --out, from its last checkpoint.",
)
engine = option(
    "--engine",
    type=Choice(("local", "spark")),
    default="local",
    help="Where to work; spark takes Parquet too.",
)
master = option(
    "--master",
    metavar="URL",
    help="Master of Spark (default: local[*,4], all cores of this machine).",
)
