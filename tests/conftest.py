"""For all tests.

Hypothesis profiles, and a tracking store of their own, so that none writes into the repository.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs.options import TrainOptions

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("dev", max_examples=25, deadline=None)
hypothesis.settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of few long tests, so that at the end no process waits for another."""
    items.sort(key=lambda item: "smoke" not in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Point MLflow at a SQLite file that goes with the session; a test may set its own on top."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "MLFLOW_RUN_ID",
            "MLFLOW_EXPERIMENT_ID",
            "MLFLOW_REGISTRY_URI",
            "SEQFOUNDRY_PARENT_RUN_ID",
        ):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        # where loaded models put their code; Matplotlib's list of fonts stays where it is
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        patch.setenv(
            "MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or str(user_cache / "matplotlib")
        )
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield uri


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """Simulate a family's smoke data and train with them, once.

    The folder with the data, and the model.
    """
    made: dict[str, tuple[Path, str]] = {}

    def make(family: str) -> tuple[Path, str]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            config = find_family(family).settings(ROOT / "params" / family / "smoke.yaml", "")
            with files.atomic_folder(folder / "data") as temporary:
                find_family(family).module("simulate").simulate(config, temporary)
            options = TrainOptions(track=False)
            find_family(family).module("train").train(
                config, folder / "data", folder / "train", options
            )
            made[family] = folder / "data", str(folder / "train" / "model")
        return made[family]

    return make
