"""What the registry and the jobs must know of a model without loading it: ``served.json``."""

import json
import reprlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError

from seqfoundry.core.errors import ModelError
from seqfoundry.core.family import recorded_family
from seqfoundry.core.files import atomic as files

FILE = "served.json"
_MEANINGS = {
    "registered_name": "1 to 100 letters, digits, _ . or -",
    "about": "a text",
    "limits": "a list of texts",
    "input_columns": "a list of one text or more",
}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What every model says of itself; a family adds fields of its own in a subclass.

    Parameters
    ----------
    format_version
        Of the files of the model folder.
    family
        Name of the family.
    package_version
        Of the package that wrote the model.
    registered_name
        Name in the registry.
    about
        What the model does, for its card.
    limits
        What it cannot do, a sentence each.
    input_columns
        Columns that ``predict`` takes; the first ones are required.
    """

    format_version: int
    family: str
    package_version: str
    registered_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
    about: str
    limits: tuple[str, ...]
    input_columns: Annotated[tuple[str, ...], Field(min_length=1)]

    def write(self, folder: Path) -> None:
        """Write ``served.json`` into a model folder."""
        files.write_json(folder / FILE, asdict(self))

    @classmethod
    def from_record(cls, record: dict[str, Any], where: str) -> Self:
        """Build from the content of ``served.json``, of this edition or the first one.

        Keys that this version does not know are ignored.

        Raises
        ------
        ModelError
            If a value is missing or of another type; the message begins with ``where``.
        """
        values = {**record, "family": recorded_family(record)}
        adapter: TypeAdapter[Self] = TypeAdapter(cls)
        try:
            return adapter.validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            raise ModelError(f"{where}: {_first_fault(error)}") from None


def _first_fault(error: ValidationError) -> str:
    """Write the first fault as *key must be what, got what*."""
    fault = error.errors(include_url=False)[0]
    key = str(fault["loc"][0])
    if fault["type"] == "missing":
        return f"must have {key}, got none"
    message = fault["msg"].removeprefix("Input should be ")
    meaning = _MEANINGS.get(key, message)
    return f"{key} must be {meaning}, got {reprlib.repr(fault['input'])}"
