from types import SimpleNamespace

import pytest

from seqfoundry.core.files import atomic
from seqfoundry.core.runs import provenance


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with two families and a core, in place of ours."""
    folder = tmp_path / "package"
    for name in ("core", "reads", "vdj"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.py").write_text(f"# {name}\n", encoding="utf-8")
    (folder / "__init__.py").touch()
    monkeypatch.setattr(provenance.seqfoundry, "__file__", str(folder / "__init__.py"))
    monkeypatch.setattr(
        provenance, "find_family", lambda name: SimpleNamespace(source_folder=folder / name)
    )
    return folder


def test_the_source_of_the_family_and_of_core_counts_and_nothing_else(package):
    def digests():
        return provenance.source_digest("reads"), provenance.source_digest("vdj")

    first = digests()
    (package / "reads" / "__pycache__").mkdir()
    (package / "reads" / "__pycache__" / "model.pyc").write_bytes(b"x")
    assert digests() == first
    assert first[0] != first[1]

    (package / "reads" / "model.py").write_text("# changed\n", encoding="utf-8")
    second = digests()
    assert second[0] != first[0]
    assert second[1] == first[1]

    (package / "core" / "data.py").touch()
    third = digests()
    assert third[0] not in {first[0], second[0]}
    assert third[1] != first[1]

    (package / "core" / "data.py").rename(package / "core" / "tables.py")
    assert digests()[1] != third[1]


def test_a_run_carries_the_digest_of_its_source(runs, store):
    with runs.start() as run:
        record = atomic.run_in(run.out)

    digest = provenance.source_digest("reads")
    assert record["source.sha256"] == store.get_run(run.id).data.tags["source.sha256"] == digest
