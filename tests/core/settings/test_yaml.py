"""YAML that hides or multiplies what it holds."""

import pytest

from seqfoundry.core.settings import yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a {x: 1}\nb: {<<: *a}", "a merge key"),
        ("a: &a {x: 1}\nb: {!!merge y: *a}", "a merge key"),
        (f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 2000)}]", "more than 100,000 values"),
        (
            f"a: &a {{? {'x' * 10_000} : 1}}\nb: [{', '.join(['*a'] * 2000)}]",
            "more than 100,000 values",
        ),
        (
            f"a: &a !!omap [{', '.join(['x: 1'] * 1000)}]\nb: [{', '.join(['*a'] * 2000)}]",
            "more than 100,000 values",
        ),
        (
            f"a: &a !!binary {'eHh4' * 3000}\nb: [{', '.join(['*a'] * 2000)}]",
            "more than 100,000 values",
        ),
    ],
    ids=["merge", "merge-tag", "text", "key", "omap", "binary"],
)
def test_files_that_hide_or_multiply_what_they_hold(text, message):
    with pytest.raises(yaml.NOT_YAML, match=message):
        yaml.load(text)


def test_a_quoted_merge_key_is_a_key():
    assert yaml.load("'<<': 1") == {"<<": 1} == yaml.load(yaml.dump({"<<": 1}))
