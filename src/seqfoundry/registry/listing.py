"""What the registry holds.

Versions with their aliases and figures, and the columns of one model.
"""

from collections.abc import Callable, Iterator
from typing import Any

from seqfoundry.core.errors import MissingError, ModelError
from seqfoundry.core.runs import store_errors, tracking
from seqfoundry.core.settings import yaml
from seqfoundry.registry import card, model_safety
from seqfoundry.registry import models as store

_MLMODEL = "MLmodel"


def models() -> list[dict[str, str]]:
    """List every version of every registered model with aliases, run and headline metric.

    The newest come first.

    A model that others registered, without a run of ours, is listed without a headline.
    """
    opened = store.connect()
    rows = []
    with tracking.as_tracking_error():
        aliases = {
            (model.name, str(version)): alias_list
            for model in _pages(opened.search_registered_models)
            for version, alias_list in _aliases_by_version(model).items()
        }
        for version in _pages(opened.search_model_versions):
            key = (version.name, str(version.version))
            headline = _headline(opened, version.run_id)
            rows.append(
                {
                    "model": version.name,
                    "version": key[1],
                    "aliases": ", ".join(sorted(aliases.get(key, []))),
                    "headline": headline,
                    "run": version.run_id or "",
                }
            )
    return sorted(rows, key=lambda row: (row["model"], -int(row["version"])))


def champion(name: str) -> Any:
    """Version that is the champion of a registered model.

    None where there is none, or no such model.
    """
    from mlflow.exceptions import MlflowException

    opened = store.connect()
    with tracking.as_tracking_error():
        try:
            return opened.get_model_version_by_alias(name, "champion")
        except MlflowException as error:
            if error.error_code not in store_errors.ABSENT:
                raise
            return None


def version_of(run_id: str) -> str:
    """Newest version that a run has become, without those whose registration was broken off.

    Empty for none.
    """
    opened = store.connect()
    with tracking.as_tracking_error():
        versions = opened.search_model_versions(f"run_id = '{run_id}'")
    finished = [
        int(version.version) for version in versions if card.GATES in version.tags
    ]  # written when the alias is
    return str(max(finished)) if finished else ""


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Give everything that a search finds; one call gives a hundred at most."""
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


def _headline(opened: Any, run_id: str | None) -> str:
    """Headline metric of a run and its value.

    Empty where there is no run, or it was not evaluated.
    """
    try:
        run = tracking.get_run(run_id, opened) if run_id else None
    except MissingError:
        run = None
    name = run.data.params.get("cfg.headline", "") if run is not None else ""
    if run is None or name not in run.data.metrics:
        return ""
    value = card.measured(run, name)
    return f"{name} {'not measured' if value is None else f'{value:.4f}'}"


def columns(reference: str) -> dict[str, list[tuple[str, str]]]:
    """Input and output columns of a registered or exported model: name and type.

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
