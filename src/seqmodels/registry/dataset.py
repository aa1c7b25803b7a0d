"""``data/``: build it from ``params/``, compare it with its pin ``data.dvc``, renew the pin.

Every room's part is simulated with the settings of ``params/<room>/demo.yaml``. Git holds no data: a fresh clone
builds them and finds the pinned digest. The manifest ``build/manifest/<room>.json`` is what trainers depend on.
"""

import logging
import subprocess
import sys
from pathlib import Path

from seqmodels.core import data as files
from seqmodels.core import provenance
from seqmodels.core.errors import InputError, MissingError, OutputError
from seqmodels.registry import rooms

log = logging.getLogger(__name__)


def manifest_path(room: str) -> Path:
    """Where the manifest of a room's data is written."""
    return provenance.project_root() / "build" / "manifest" / f"{room}.json"


def folder_of(room: str) -> Path:
    """Where a room's data lie."""
    return provenance.project_root() / "data" / room


def build(room: str | None = None, *, update: bool = False) -> dict[str, str]:
    """Make the data of one room or of all, write their manifests, and return their digests.

    Data that are there and agree with the pin are not made again. When all of ``data/`` agrees with ``data.dvc`` it
    is stored in DVC's cache; with ``update`` the pin is renewed instead of compared.

    Raises
    ------
    InputError
        If what was built is not what ``data.dvc`` pins, and ``update`` is not given; what was there before stays.
    """
    root = provenance.project_root()
    pinned = {} if update else files.read_pin(root)["rooms"]
    made = {}
    for name in [rooms.check(room)] if room else list(rooms.ROOMS):
        folder = folder_of(name)
        if not update and folder.is_dir() and any(folder.iterdir()) and files.digest(folder) == pinned.get(name):
            log.info("data/%s is there and as pinned", name)
        else:
            config = rooms.settings(name, root / "params" / name / "demo.yaml")
            with files.folder_written_whole(folder, replace=True) as temporary:
                rooms.part(name, "simulate").simulate(config, temporary)
                if not update:
                    _check_pinned(folder, files.digest(temporary), pinned.get(name))
            log.info("data/%s built", name)
        made[name] = files.write_manifest(manifest_path(name), folder)
    if update:
        _renew_pin(root)
    elif files.digest(root / "data") == files.read_pin(root)["md5"]:
        _dvc(root, "commit", "-q", "data.dvc")
    return made


def _check_pinned(folder: Path, found: str, wanted: str | None) -> None:
    if found != wanted:
        raise InputError(
            f"{folder}: must have the digest that data.dvc pins, {wanted or '(none)'}, got {found} from params/; "
            "if the change is meant: seqmodels data build --update, and commit data.dvc"
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
    found = {}
    for room in rooms.ROOMS:
        found[room] = files.digest(folder_of(room))
        if found[room] != pin["rooms"].get(room):
            raise InputError(
                f"{folder_of(room)}: must have the digest {pin['rooms'].get(room)} (data.dvc), got {found[room]}"
            )
    found["data"] = files.digest(root / "data")
    if found["data"] != pin["md5"]:
        raise InputError(f"{root / 'data'}: must have the digest {pin['md5']} (data.dvc), got {found['data']}")
    return found


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
        with files.lock(own.parent.with_name("build") / f"data-{room}.lock"):
            if not own.is_dir() or not any(own.iterdir()):
                build(room)
        files.check_manifest(manifest_path(room), own)
        return own
    if not folder.is_dir() or not any(folder.iterdir()):
        raise MissingError(
            f"--data {folder}: must be a folder with data, got {'an empty one' if folder.is_dir() else 'none'}"
        )
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
