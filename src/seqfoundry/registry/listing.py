"""Lists of the registry: versions with aliases and figures, and the columns of one model."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from seqfoundry.core.errors import MissingError, ModelError
from seqfoundry.core.runs import store_errors, tracking
from seqfoundry.core.settings import yaml
from seqfoundry.registry import card, model_safety
from seqfoundry.registry import models as store

if TYPE_CHECKING:  # MLflow takes a second to import
    from mlflow import MlflowClient

_MLMODEL = "MLmodel"


def models() -> list[dict[str, str]]:
    """List all versions of all registered models with aliases, run and headline metric.

    The newest version of a model comes first. A version without a run of ours has no headline.
    """
    client = store.connect()
    rows = []
    with tracking.as_tracking_error():
        aliases = {}
        for model in _pages(client.search_registered_models):
            aliases[model.name] = _aliases_by_version(model)
        for version in _pages(client.search_model_versions):
            number = str(version.version)
            version_aliases = aliases.get(version.name, {}).get(number, [])
            rows.append(
                {
                    "model": version.name,
                    "version": number,
                    "aliases": ", ".join(sorted(version_aliases)),
                    "headline": _headline(client, version.run_id),
                    "run": version.run_id or "",
                }
            )
    return sorted(rows, key=lambda row: (row["model"], -int(row["version"])))


def champion(name: str) -> Any:
    """Return the champion of a registered model; None if there is no champion or no such model."""
    from mlflow.exceptions import MlflowException

    client = store.connect()
    with tracking.as_tracking_error():
        try:
            return client.get_model_version_by_alias(name, "champion")
        except MlflowException as error:
            if error.error_code not in store_errors.ABSENT:
                raise
            return None


def version_of(run_id: str) -> str:
    """Return the newest version made from a run; empty if there is none.

    A version whose registration was broken off does not count.
    """
    client = store.connect()
    with tracking.as_tracking_error():
        versions = client.search_model_versions(f"run_id = '{run_id}'")
    # the tag is written at the end of a registration
    finished = [int(version.version) for version in versions if card.GATES in version.tags]
    return str(max(finished)) if finished else ""


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Yield all results of a search, of which one call returns a hundred at most."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _aliases_by_version(model: Any) -> dict[str, list[str]]:
    aliases_by_version: dict[str, list[str]] = {}
    for alias, version in model.aliases.items():
        aliases_by_version.setdefault(str(version), []).append(alias)
    return aliases_by_version


def _headline(client: "MlflowClient", run_id: str | None) -> str:
    """Write a run's headline metric and its value; empty without a run or an evaluation."""
    if not run_id:
        return ""
    try:
        run = tracking.get_run(run_id, client)
    except MissingError:
        return ""
    name = run.data.params.get("cfg.headline", "")
    if name not in run.data.metrics:
        return ""
    value = card.measured(run, name)
    if value is None:
        return f"{name} not measured"
    return f"{name} {value:.4f}"


def columns(reference: str) -> dict[str, list[tuple[str, str]]]:
    """Return input and output columns of a registered or exported model: name and type.

    Raises
    ------
    MissingError
        If there is no such model.
    ModelError
        If it is no packaged model, or its ``MLmodel`` is damaged.
    """
    from mlflow.models import ModelSignature

    with store.fetch(reference, _MLMODEL) as fetched:
        path = fetched if fetched.is_file() else fetched / _MLMODEL
        if not path.is_file():
            raise ModelError(
                f"{reference}: must be a registered or exported model (with {_MLMODEL}), got "
                "another folder"
            )
        with model_safety.damaged(f"{path}: must describe a model"):
            # MLflow reads the file without bounds
            content = yaml.load(path.read_text(encoding="utf-8"))
            signature = ModelSignature.from_dict(content["signature"])
            schemas = {"input": signature.inputs, "output": signature.outputs}
            if None in schemas.values():
                raise ValueError("a signature without input or output columns")
            return {side: _names_and_types(schema) for side, schema in schemas.items()}


def _names_and_types(schema: Any) -> list[tuple[str, str]]:
    return [(str(column.name), repr(column.type)) for column in schema.inputs]
