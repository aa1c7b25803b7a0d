"""What reaches the terminal.

One line for an error, whatever is in it and whatever the locale can write.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqfoundry.cli import main, program
from seqfoundry.core.errors import ConfigError, MissingError, ModelError
from seqfoundry.core.runs import logging_setup

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MissingError("a\nb: must exist"), r"a\nb: must exist"),
        (ModelError("\x1b[2Jx\r\x00\x9b\u2028"), r"\x1b[2Jx\r\x00\x9b\u2028"),
        (ConfigError("one\ntwo\t"), "one\n" r"two\t"),
        (MissingError("ä\\n"), "ä\\n"),
    ],
)
def test_an_error_is_one_line_and_steers_nothing(error, told):
    assert logging_setup.message(error) == told


def test_a_line_break_in_a_name_makes_no_second_line(capsys, tmp_path):
    for words in (
        ["export", "a\nb", str(tmp_path / "out")],
        ["simulate", "x\ny", "--params", "p", "--out", "o"],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


CODE = """
import sys
from seqfoundry import cli
def fail(uri, folder):
    raise {error}
def tell(uri, folder):
    return "k\\u00f6ln " + sys.argv[1]
cli.program.commands["export"].callback = {verb}
sys.exit(cli.main(["export", "models:/x/1", sys.argv[1]]))
"""


def ascii_only(verb, error="None"):
    """Run a verb with a name that the locale cannot write, where Python does not help itself."""
    environment = {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii:strict",
    }
    command = [sys.executable, "-c", CODE.format(verb=verb, error=error), "f\u00fcnf".encode()]
    environment = {key: value for key, value in os.environ.items() if key != "LANG"} | environment
    return subprocess.run(
        command, cwd=ROOT / "src", env=environment, capture_output=True, check=False
    )


def test_a_result_that_the_locale_cannot_write_is_told():
    process = ascii_only("tell")
    assert (process.returncode, process.stderr) == (0, b"")
    assert process.stdout == b"k\\xf6ln f\\udcc3\\udcbcnf\n"


def test_a_library_that_cannot_use_a_name_is_told_in_one_line():
    process = ascii_only(
        "fail", "UnicodeEncodeError('utf-8', sys.argv[1], 1, 3, 'surrogates not allowed')"
    )
    message = (
        rb"seqfoundry: 'f\udcc3\udcbcnf': must be text of the locale (ascii); set "
        rb"LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    )
    assert (process.returncode, process.stdout, process.stderr) == (2, b"", message + b"\n")


def test_what_a_store_raises_past_us_is_one_line_without_a_login(capsys, monkeypatch):
    from mlflow.exceptions import MlflowException

    def fail(uri):
        raise MlflowException(
            "API request to http://ada:secret@host/api failed\nwith Connection refused"
        )

    monkeypatch.setattr(program.commands["models"], "callback", fail)
    assert main(["models"]) == 2
    message = (
        "must do what was asked, got: API request to http://host/api failed with Connection "
        "refused"
    )
    assert capsys.readouterr() == ("", f"seqfoundry: tracking store: {message}\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def fail(uri):
        raise KeyError("ours")

    monkeypatch.setattr(program.commands["models"], "callback", fail)
    with pytest.raises(KeyError, match="ours"):
        main(["models"])
