"""``data/``: build it from ``params/``, compare it with its pin ``data.dvc``, renew the pin.

Every family's part is simulated with the settings of ``params/<family>/demo.yaml``. Git holds no
data: a fresh clone builds them and finds the pinned digest. DVC watches the parts through the link
``build/data``, since ``data.dvc`` owns the path ``data``; see ``dvc.yaml``.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.family import built_in_families, find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import provenance

log = logging.getLogger(__name__)


def data_folder(family: str) -> Path:
    """Return the folder with a family's data."""
    return provenance.project_root() / "data" / family


def build(family: str | None = None, *, update: bool = False) -> dict[str, str]:
    """Make the data of one family or of all, and return their digests.

    What is simulated must have the digest that ``data.dvc`` pins. Other data are accepted where
    ``dvc add data`` pinned them. When all of ``data/`` agrees with ``data.dvc`` it is stored in
    DVC's cache; with ``update`` the pin is renewed instead of compared.

    Raises
    ------
    InputError
        If what is there, or what is simulated, is not what ``data.dvc`` pins, and ``update`` is
        not given; what was there before stays.
    """
    root = provenance.project_root()
    names = list(built_in_families()) if family is None else [find_family(family).name]
    link_data(root)
    digests = {}
    for name in names:
        with files.lock(root / "build" / f"data-{name}.lock"):
            _build_family(root, name, update=update)
            digests[name] = files.digest(data_folder(name))
    if update:
        _renew_pin(root)
    elif files.digest(root / "data") == files.read_pin(root)["md5"]:
        _dvc(root, "commit", "-q", "data.dvc")
    return digests


def link_data(folder: Path) -> None:
    """Make the link ``build/data -> ../data`` in a folder with ``dvc.yaml``.

    DVC compares paths as text, so ``build/data/<family>`` is no part of ``data.dvc``.
    """
    link = folder / "build" / "data"
    with files.as_output_error(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.join("..", "data"))


def _build_family(root: Path, family: str, *, update: bool) -> None:
    """Make the data of one family, or compare those that are there with a new simulation."""
    folder = data_folder(family)
    files.remove_unfinished(folder)
    has_data = folder.is_dir() and any(folder.iterdir())
    if update:
        with files.atomic_folder(folder, replace=True) as temporary:
            _simulate(family, temporary)
        return
    pin = files.read_pin(root)
    if not has_data:
        _check_pin_is_simulated(folder, pin)
        with files.atomic_folder(folder) as temporary:
            _simulate(family, temporary)
            _check_simulated(folder, files.digest(temporary), pin)
        log.info("data/%s built", family)
    elif files.digest(folder) == pin["families"].get(family):
        with tempfile.TemporaryDirectory(prefix=f".data-{family}.", dir=root / "build") as aside:
            _simulate(family, Path(aside))
            _check_simulated(folder, files.digest(Path(aside)), pin)
        log.info("data/%s is there, as params/ and data.dvc have it", family)
    else:
        _check_added(root, folder, pin)
        log.info("data/%s is there, and pinned by dvc add", family)


def _simulate(name: str, folder: Path) -> None:
    family = find_family(name)
    config = family.settings(family.parameters_folder / "demo.yaml")
    family.module("simulate").simulate(config, folder)


def _check_pin_is_simulated(folder: Path, pin: Mapping[str, Any]) -> None:
    """Refuse to simulate in place of data that ``dvc add data`` pinned."""
    if pin["simulated"] != pin["md5"]:
        raise MissingError(
            f"{folder}: must hold the data that dvc add pinned, got none; fetch them with: dvc "
            "checkout data.dvc, or dvc pull data.dvc"
        )


def _check_simulated(folder: Path, digest: str, pin: Mapping[str, Any]) -> None:
    pinned = pin["families"].get(folder.name, "(none)")
    if digest != pinned:
        raise InputError(
            f"{folder}: must have the digest that data.dvc pins, {pinned}, got {digest} from "
            f"params/; if the change is meant: seqfoundry data build {folder.name} --update, and "
            "commit data.dvc"
        )


def _check_added(root: Path, folder: Path, pin: Mapping[str, Any]) -> None:
    """Refuse data that were not simulated, unless ``dvc add data`` pinned them.

    DVC does not know the digests of families, so all of ``data/`` is compared.
    """
    if files.digest(root / "data") != pin["md5"]:
        raise InputError(
            f"{folder}: must be as data.dvc pins it, got other data, which are not replaced; to "
            f"get the pinned data again: rm -r data/{folder.name}, then dvc checkout data.dvc or "
            "the same command; to pin these: dvc add data"
        )


def check() -> dict[str, str]:
    """Compare ``data/`` with ``data.dvc`` and return the digest of each family and of the whole.

    Raises
    ------
    InputError, MissingError
        Naming the first family that differs or is absent, or the whole if something else lies in
        ``data/``.
    """
    root = provenance.project_root()
    pin = files.read_pin(root)
    digests = {family: files.digest(data_folder(family)) for family in built_in_families()}
    digests["data"] = files.digest(root / "data")
    if digests["data"] == pin["md5"]:
        return digests
    for family in built_in_families():
        if digests[family] != pin["families"].get(family):
            raise InputError(
                f"{data_folder(family)}: must have the digest {pin['families'].get(family)} "
                f"(data.dvc), got {digests[family]}; what to do says: seqfoundry data build "
                f"{family}"
            )
    raise InputError(
        f"{root / 'data'}: must have the digest {pin['md5']} (data.dvc), got {digests['data']}"
    )


def ensure(family: str, folder: Path | None) -> Path:
    """Return the folder of a family's data: ``folder``, or the project's own, built if absent.

    Raises
    ------
    InputError
        If the project's data cannot be built as pinned.
    MissingError
        If a folder that was named is absent or empty.
    """
    default_folder = data_folder(family)
    if folder is None or folder.resolve() == default_folder.resolve():
        if not default_folder.is_dir() or not any(default_folder.iterdir()):
            build(family)
        return default_folder
    there = files.is_there(folder) and folder.is_dir()
    if not there or not any(folder.iterdir()):
        raise MissingError(
            f"--data {folder}: must be a folder with data, got "
            f"{'an empty one' if there else 'none'}; make one with: seqfoundry simulate {family}"
        )
    return folder


def _renew_pin(root: Path) -> None:
    """Let DVC hash and store ``data/``, and record each family's digest beside the whole."""
    digests = {family: files.digest(data_folder(family)) for family in built_in_families()}
    if not _dvc(root, "add", "-q", "data"):
        raise OutputError(
            f"{root / 'data.dvc'}: must be renewed by dvc add data, got what dvc said above"
        )
    files.write_pin_families(root, digests)


def _dvc(root: Path, *words: str) -> bool:
    """Run DVC in the project and tell whether it did it.

    For a build, data that are not cached are as good.
    """
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=root,
        stdin=subprocess.DEVNULL,  # a question would wait for ever
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        log.warning("dvc %s: %s", " ".join(words), answer.stderr.strip() or answer.stdout.strip())
    return answer.returncode == 0
