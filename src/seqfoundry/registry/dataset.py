"""``data/``: build it from ``params/``, compare it with its pin ``data.dvc``, renew the pin.

Every room's part is simulated with the settings of ``params/<room>/demo.yaml``. Git holds no data: a fresh clone
builds them and finds the pinned digest. The manifest ``build/manifest/<room>.json`` is what trainers depend on.
"""

import contextlib
import logging
import subprocess
import sys
from pathlib import Path

from seqfoundry.core import data as files
from seqfoundry.core import provenance
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.registry import rooms

log = logging.getLogger(__name__)


def manifest_path(room: str) -> Path:
    """Where the manifest of a room's data is written."""
    return provenance.project_root() / "build" / "manifest" / f"{room}.json"


def folder_of(room: str) -> Path:
    """Where a room's data lie."""
    return provenance.project_root() / "data" / room


def build(room: str | None = None, *, update: bool = False) -> dict[str, str]:
    """Make the data of one room or of all, write their manifests, and return their digests.

    Data that are there and agree with the pin are not made again. Other data are taken as they are where ``dvc add
    data`` pinned them, made again where they were built here, and else refused. When all of ``data/`` agrees with
    ``data.dvc`` it is stored in DVC's cache; with ``update`` the data are made anew, whatever is there, and the pin is
    renewed instead of compared.

    Raises
    ------
    InputError
        If what is there was neither built here nor pinned, or what was built is not what ``data.dvc`` pins, and
        ``update`` is not given; what was there before stays.
    """
    root = provenance.project_root()
    made = {}
    for name in [rooms.check(room)] if room else list(rooms.ROOMS):
        with _locked(name):
            _build_room(root, name, update=update)
            made[name] = files.write_manifest(manifest_path(name), folder_of(name))
    if update:
        _renew_pin(root)
    elif files.digest(root / "data") == files.read_pin(root)["md5"]:
        _dvc(root, "commit", "-q", "data.dvc")
    return made


def _locked(room: str) -> contextlib.AbstractContextManager[None]:
    """Keep other processes from making a room's data at the same time."""
    return files.lock(provenance.project_root() / "build" / f"data-{room}.lock")


def _build_room(root: Path, room: str, *, update: bool) -> None:
    """Make the data of one room, unless they are there."""
    folder = folder_of(room)
    files.remove_unfinished(folder)
    if not update and _is_pinned(root, room):
        log.info("data/%s is there and as pinned", room)
        return
    wanted = None if update else files.read_pin(root)["rooms"].get(room)
    config = rooms.settings(room, root / "params" / room / "demo.yaml")
    with files.folder_written_whole(folder, replace=True) as temporary:
        rooms.part(room, "simulate").simulate(config, temporary)
        if not update:
            _check_pinned(room, files.digest(temporary), wanted)
    log.info("data/%s built", room)


def _is_pinned(root: Path, room: str) -> bool:
    """Tell whether a room's data are there and pinned; false where there are none, or such as may be replaced.

    Raises
    ------
    InputError
        If they are a user's own, and not pinned.
    """
    folder, pin = folder_of(room), files.read_pin(root)
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    found = files.digest(folder)
    if found == pin["rooms"].get(room):
        return True
    if files.digest(root / "data") == pin["md5"]:  # by dvc add data, which knows no rooms
        there = [name for name in rooms.ROOMS if folder_of(name).is_dir()]
        files.write_pin_rooms(root, pin["rooms"] | {name: files.digest(folder_of(name)) for name in there})
        return True
    manifest = manifest_path(room)
    if manifest.is_file() and files.read_json(manifest).get("digest") == found:
        return False
    raise InputError(
        f"{folder}: must be as data.dvc pins it or as it was built here, got other data, which are not replaced; "
        f"to pin them: dvc add data; to put simulated ones in their place: seqfoundry data build {room} --update"
    )


def _check_pinned(room: str, found: str, wanted: str | None) -> None:
    if found != wanted:
        raise InputError(
            f"{folder_of(room)}: must have the digest that data.dvc pins, {wanted or '(none)'}, "
            f"got {found} from params/; "
            f"if the change is meant: seqfoundry data build {room} --update, and commit data.dvc"
        )


def check() -> dict[str, str]:
    """Compare ``data/`` with ``data.dvc`` and return the digest of each room and of the whole.

    Raises
    ------
    InputError, MissingError
        Naming the first room that differs or is absent, or the whole if something else lies in ``data/``.
    """
    root = provenance.project_root()
    pin = files.read_pin(root)
    found = {room: files.digest(folder_of(room)) for room in rooms.ROOMS}
    found["data"] = files.digest(root / "data")
    if found["data"] == pin["md5"]:
        return found
    for room in rooms.ROOMS:
        if found[room] != pin["rooms"].get(room):
            raise InputError(
                f"{folder_of(room)}: must have the digest {pin['rooms'].get(room)} (data.dvc), got {found[room]}"
            )
    raise InputError(f"{root / 'data'}: must have the digest {pin['md5']} (data.dvc), got {found['data']}")


def ensure(room: str, folder: Path | None) -> Path:
    """Return the folder of a room's data, the project's own by default, which is built if it is absent.

    Raises
    ------
    InputError
        If the project's data are not those of their manifest.
    MissingError
        If a folder that was named is absent or empty.
    """
    own = folder_of(room)
    if folder is None or folder.resolve() == own.resolve():
        if not own.is_dir() or not any(own.iterdir()):
            build(room)
        with _locked(room):
            files.check_manifest(manifest_path(room), own)
        return own
    there = files.is_there(folder) and folder.is_dir()
    if not there or not any(folder.iterdir()):
        raise MissingError(f"--data {folder}: must be a folder with data, got {'an empty one' if there else 'none'}")
    return folder


def _renew_pin(root: Path) -> None:
    """Let DVC hash and store ``data/``, and record each room's digest beside the whole."""
    digests = {room: files.digest(folder_of(room)) for room in rooms.ROOMS}
    if not _dvc(root, "add", "-q", "data"):
        raise OutputError(f"{root / 'data.dvc'}: must be renewed by dvc add data, got what dvc said above")
    files.write_pin_rooms(root, digests)


def _dvc(root: Path, *words: str) -> bool:
    """Run DVC in the project and tell whether it did it; for a build, data that are not cached are as good."""
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
