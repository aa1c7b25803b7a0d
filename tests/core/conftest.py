"""A small project to run in, and runs that train nothing."""

from pathlib import Path

import pytest

from seqfoundry.core.files import atomic
from seqfoundry.core.runs import tracking
from seqfoundry.core.runs.options import TrainOptions

SETTINGS = {
    "seed": 1,
    "model": {"width": 8, "rates": [1e-4, 0.5]},
    "gates": {"test.f1": {"min": 0.5}},
    "none": None,
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the project, as working directory."""
    project = tmp_path / "project"
    (project / "params").mkdir(parents=True)
    (project / "MLproject").write_text("name: x\n", encoding="utf-8")
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "reads.txt").write_text("ACGT", encoding="utf-8")
    return tmp_path / "inputs"


@pytest.fixture
def store(checkout):
    return tracking.connect()


class Runs:
    """Opens runs with the usual settings, data and options, or with other ones."""

    def __init__(self, inputs: Path) -> None:
        self.inputs = inputs
        self.settings = SETTINGS

    def start(self, out=None, *, settings=SETTINGS, family="reads", data=None, **options):
        return tracking.run(
            family, settings, data=data or self.inputs, out=out, options=TrainOptions(**options)
        )

    def finished(self, out=None, **options):
        """Id of a run that left one checkpoint and ended well."""
        with self.start(out, **options) as run:
            atomic.write_text(run.out / "checkpoints" / "last.npz", "weights")
        return run.id

    def broken(self, kind, work, out=None):
        """Run, and message of the error, of a run whose ``work(run)`` does not end well."""
        runs = []

        def train():
            with self.start(out) as run:
                runs.append(run)
                work(run)

        with pytest.raises(kind) as caught:
            train()
        return runs[0], str(caught.value)

    def refused(self, kind, out=None, **options):
        """Message with which a run is refused before it begins."""
        with pytest.raises(kind) as caught, self.start(out, **options):
            raise AssertionError("must be refused before the run begins")
        return str(caught.value)

    def stored(self, run_id, folder=""):
        """Paths of the files that the store has of a run."""
        paths = []
        for entry in tracking.connect().list_artifacts(run_id, folder):
            paths += self.stored(run_id, entry.path) if entry.is_dir else [entry.path]
        return sorted(paths)


@pytest.fixture
def runs(checkout, inputs):
    return Runs(inputs)
