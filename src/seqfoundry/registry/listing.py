"""What the registry holds.

Versions with their aliases and figures, and the columns of one model.
"""

from collections.abc import Callable, Iterator
from typing import Any

from seqfoundry.core.errors import MissingError, ModelError
from seqfoundry.core.runs import store_errors, tracking
from seqfoundry.registry import card, model_safety
from seqfoundry.registry import models as store


def models() -> list[dict[str, str]]:
    """List every version of every registered model with its aliases, run and headline metric, newest first.

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
        found = opened.search_model_versions(f"run_id = '{run_id}'")
    whole = [
        int(one.version) for one in found if card.GATES in one.tags
    ]  # written when the alias is
    return str(max(whole)) if whole else ""


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
    found: dict[str, list[str]] = {}
    for alias, version in model.aliases.items():
        found.setdefault(str(version), []).append(alias)
    return found


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
        If it is no packaged model of ours, damaged, or holds other code (see `packages.check`).
    """
    with store.fetch(reference) as fetched:
        from mlflow.models import Model

        if not (fetched / "MLmodel").is_file():
            raise ModelError(
                f"{reference}: must be a registered or exported model (with MLmodel), got another "
                "folder"
            )
        model_safety.check(fetched, store.read_served(fetched / "artifacts" / "model")["family"])
        with model_safety.damaged(f"{fetched / 'MLmodel'}: must describe a model"):
            signature = Model.load(str(fetched)).signature
            if signature is None or signature.inputs is None or signature.outputs is None:
                raise ModelError(
                    f"{reference}: must name its input and output columns, got a model that does "
                    "not"
                )
            return {
                side: [(str(column.name), repr(column.type)) for column in schema.inputs]
                for side, schema in (("input", signature.inputs), ("output", signature.outputs))
            }
