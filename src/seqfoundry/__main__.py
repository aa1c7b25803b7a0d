"""Run the command line: ``python -m seqfoundry``."""

from seqfoundry.cli import entry

if __name__ == "__main__":
    entry()
