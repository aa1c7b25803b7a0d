"""Write the MLproject: an entry point for each command, made from the commands themselves.

``python -m seqfoundry.mlproject > MLproject`` (``make mlproject``). MLflow quotes every value, so
the file adds no quotes. Parameters that name files of the project are strings, since MLflow would
make a path absolute against the caller's folder; a user's own files, which are arguments, are
paths. Defaults are file names only: science stands in ``params/``.
"""

import sys
import textwrap
from dataclasses import dataclass

import click

from seqfoundry import cli
from seqfoundry.core.command_line import Argument
from seqfoundry.core.family import Family, built_in_families

HEADER = """\
name: seqfoundry
conda_env: conda.yaml

# Made by `make mlproject` from the commands; change those. A parameter that stands for a flag is
# yes, or empty.
entry_points:
"""

RESULT_FOLDERS = {
    "simulate": "simulated",
    "prepare": "prepared",
    "evaluate": "evaluate",
    "annotate": "annotated",
    "score": "scored",
}

# the names of the mission
MISSION_NAMES = {
    "simulate-data": ("simulate", "reads"),
    "train-model": ("train", "reads"),
    "assess-model": ("evaluate", "reads"),
}


@dataclass(frozen=True)
class EntryPoint:
    """One entry point.

    Its name, the command's words and the values that MLflow knows without being told.
    """

    name: str
    words: str
    command: click.Command
    defaults: dict[str, str]

    def to_yaml(self) -> str:
        """Write the entry point as it stands in the file."""
        parameters = []
        words = [f"PYTHONPATH=src python -m seqfoundry {self.words}"]
        for param in self.command.params:
            if isinstance(param, Argument):
                name = str(param.name).removesuffix("s") if param.nargs == -1 else str(param.name)
                words.append(f"{{{name}}}")
            else:
                option = max(param.opts, key=len)
                name = option.removeprefix("--").replace("-", "_")
                words.append(f"{option} {{{name}}}")
            parameters.append(f"      {name}: {self._type(param, name)}")
        head = [f"  {self.name}:", "    parameters:", *parameters]
        lines = textwrap.wrap(
            " ".join(words), 99 - 6, break_long_words=False, break_on_hyphens=False
        )
        return "\n".join([*head, "    command: >-", *(f"      {line}" for line in lines)]) + "\n"

    def _type(self, param: click.Parameter, name: str) -> str:
        if name in self.defaults:
            return f'{{type: string, default: "{self.defaults[name]}"}}'
        if isinstance(param, Argument) and isinstance(param.type, click.Path):
            return "{type: path}"
        if param.required:
            return "{type: string}"
        default = param.default if isinstance(param.default, str) else ""
        return f'{{type: string, default: "{default}"}}'


def family_entry_points(family: Family) -> list[EntryPoint]:
    """Make the entry points of a family's verbs."""
    return [_family_entry_point(f"{verb}-{family.name}", verb, family) for verb in family.verbs]


def _family_entry_point(name: str, verb: str, family: Family) -> EntryPoint:
    command = getattr(family.module("commands"), verb)
    profile = "full" if verb == "prepare" else "demo"
    defaults = {"params": f"params/{family.name}/{profile}.yaml"}
    if verb == "evaluate":
        defaults["model"] = f"build/{family.name}/train"
    elif family.champion:
        defaults["model"] = f"models:/{family.champion}@champion"
    if verb in RESULT_FOLDERS:
        defaults["out"] = f"build/{family.name}/{RESULT_FOLDERS[verb]}"
    return EntryPoint(name, f"{verb} {family.name}", command, defaults)


def entry_points() -> list[EntryPoint]:
    """Make all entry points.

    Of the product, of each built-in family, and under the names of the mission.
    """
    families = built_in_families()
    product = cli.program.commands
    lines = [
        EntryPoint("main", "demo", product["demo"], {}),
        EntryPoint("data", "data", product["data"], {"action": "build"}),
        EntryPoint("register", "register", product["register"], {}),
        EntryPoint("promote", "promote", product["promote"], {}),
    ]
    for family in families.values():
        lines += family_entry_points(family)
    lines += [
        _family_entry_point(name, verb, families[family])
        for name, (verb, family) in MISSION_NAMES.items()
    ]
    return lines


def write_mlproject() -> str:
    """Write the whole file."""
    return HEADER + "".join(entry.to_yaml() for entry in entry_points())


if __name__ == "__main__":
    sys.stdout.write(write_mlproject())
