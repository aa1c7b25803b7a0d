"""``data/``: build it from ``params/``, compare it with its pin ``data.dvc``, renew the pin.

Every family's part is simulated with the settings of ``params/<family>/demo.yaml``. Git holds no
data: a fresh clone builds them and finds the pinned digest. The manifest
``build/manifest/<family>.json`` is what trainers depend on.
"""

import contextlib
import logging
import subprocess
import sys
from pathlib import Path

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.family import all_families, find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import provenance

log = logging.getLogger(__name__)


def manifest_path(family: str) -> Path:
    """Where the manifest of a family's data is written."""
    return provenance.project_root() / "build" / "manifest" / f"{family}.json"


def folder_of(family: str) -> Path:
    """Where a family's data lie."""
    return provenance.project_root() / "data" / family


def build(family: str | None = None, *, update: bool = False) -> dict[str, str]:
    """Make the data of one family or of all, write their manifests, and return their digests.

    Data that are there and agree with the pin are not made again. Other data are taken as they are
    where ``dvc add data`` pinned them, made again where they were built here, and else refused.
    When all of ``data/`` agrees with ``data.dvc`` it is stored in DVC's cache; with ``update`` the
    data are made anew, whatever is there, and the pin is renewed instead of compared.

    Raises
    ------
    InputError
        If what is there was neither built here nor pinned, or what was built is not what
        ``data.dvc`` pins, and ``update`` is not given; what was there before stays.
    """
    root = provenance.project_root()
    made = {}
    for name in [find_family(family).name] if family else list(all_families()):
        with _locked(name):
            _build_family(root, name, update=update)
            made[name] = files.write_manifest(manifest_path(name), folder_of(name))
    if update:
        _renew_pin(root)
    elif files.digest(root / "data") == files.read_pin(root)["md5"]:
        _dvc(root, "commit", "-q", "data.dvc")
    return made


def _locked(family: str) -> contextlib.AbstractContextManager[None]:
    """Keep other processes from making a family's data at the same time."""
    return files.lock(provenance.project_root() / "build" / f"data-{family}.lock")


def _build_family(root: Path, family: str, *, update: bool) -> None:
    """Make the data of one family, unless they are there."""
    folder = folder_of(family)
    files.remove_unfinished(folder)
    if not update and _is_pinned(root, family):
        log.info("data/%s is there and as pinned", family)
        return
    wanted = None if update else files.read_pin(root)["families"].get(family)
    config = find_family(family).settings(root / "params" / family / "demo.yaml")
    with files.folder_written_whole(folder, replace=True) as temporary:
        find_family(family).module("simulate").simulate(config, temporary)
        if not update:
            _check_pinned(family, files.digest(temporary), wanted)
    log.info("data/%s built", family)


def _is_pinned(root: Path, family: str) -> bool:
    """Tell whether a family's data are there and pinned.

    False where there are none, or such as may be replaced.

    Raises
    ------
    InputError
        If they are a user's own, and not pinned.
    """
    folder, pin = folder_of(family), files.read_pin(root)
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    found = files.digest(folder)
    if found == pin["families"].get(family):
        return True
    if files.digest(root / "data") == pin["md5"]:  # by dvc add data, which knows no families
        there = [name for name in all_families() if folder_of(name).is_dir()]
        files.write_pin_families(
            root, pin["families"] | {name: files.digest(folder_of(name)) for name in there}
        )
        return True
    manifest = manifest_path(family)
    if manifest.is_file() and files.read_json(manifest).get("digest") == found:
        return False
    raise InputError(
        f"{folder}: must be as data.dvc pins it or as it was built here, got other data, which "
        "are not replaced; "
        "to pin them: dvc add data; to put simulated ones in their place: seqfoundry data build "
        f"{family} --update"
    )


def _check_pinned(family: str, found: str, wanted: str | None) -> None:
    if found != wanted:
        raise InputError(
            f"{folder_of(family)}: must have the digest that data.dvc pins, {wanted or '(none)'}, "
            f"got {found} from params/; "
            f"if the change is meant: seqfoundry data build {family} --update, and commit data.dvc"
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
    found = {family: files.digest(folder_of(family)) for family in all_families()}
    found["data"] = files.digest(root / "data")
    if found["data"] == pin["md5"]:
        return found
    for family in all_families():
        if found[family] != pin["families"].get(family):
            raise InputError(
                f"{folder_of(family)}: must have the digest {pin['families'].get(family)} "
                f"(data.dvc), got {found[family]}"
            )
    raise InputError(
        f"{root / 'data'}: must have the digest {pin['md5']} (data.dvc), got {found['data']}"
    )


def ensure(family: str, folder: Path | None) -> Path:
    """Return the folder of a family's data, the project's own by default, which is built if it is absent.

    Raises
    ------
    InputError
        If the project's data are not those of their manifest.
    MissingError
        If a folder that was named is absent or empty.
    """
    own = folder_of(family)
    if folder is None or folder.resolve() == own.resolve():
        if not own.is_dir() or not any(own.iterdir()):
            build(family)
        with _locked(family):
            files.check_manifest(manifest_path(family), own)
        return own
    there = files.is_there(folder) and folder.is_dir()
    if not there or not any(folder.iterdir()):
        raise MissingError(
            f"--data {folder}: must be a folder with data, got "
            f"{'an empty one' if there else 'none'}"
        )
    return folder


def _renew_pin(root: Path) -> None:
    """Let DVC hash and store ``data/``, and record each family's digest beside the whole."""
    digests = {family: files.digest(folder_of(family)) for family in all_families()}
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
