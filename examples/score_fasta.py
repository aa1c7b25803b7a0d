"""Activities of the sequences of a FASTA file by a model of an MLflow registry.

One row per sequence, as TSV.

Needs mlflow, pandas and what the model itself lists (``requirements.txt`` beside it), nothing
else:

    python examples/score_fasta.py enhancers.fa --model models:/enhancer-deepstarr@champion >
    activities.tsv
"""

import argparse
import gzip
import os
import sys

import pandas as pd

BATCH = 1000  # sequences at a time


def read_fasta(path):
    """Yield name and sequence of every record."""
    name, parts = None, []
    opened = gzip.open(path, "rt") if path.endswith(".gz") else open(path)
    with opened as lines:
        for line in map(str.strip, lines):
            if line.startswith(">"):
                if name is not None:
                    yield name, "".join(parts)
                name, parts = (line[1:].split() or [""])[0], []
            elif name is not None:
                parts.append(line)
            elif line:
                sys.exit(f"{path}: the first line must begin with '>', got {line[:40]!r}")
    if name is not None:
        yield name, "".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fasta", help="plain or .gz")
    parser.add_argument(
        "--model", required=True, help="models:/NAME@champion, or an exported folder"
    )
    parser.add_argument("--out", default="-", help="TSV file (default: standard output)")
    args = parser.parse_args()
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    import mlflow

    records = pd.DataFrame(read_fasta(args.fasta), columns=["name", "sequence"])
    if records.empty:
        sys.exit(f"{args.fasta}: must have at least one sequence, got none")
    model = mlflow.pyfunc.load_model(args.model)
    parts = [records[start : start + BATCH] for start in range(0, len(records), BATCH)]
    try:
        answers = pd.concat(
            [part[["name"]].join(model.predict(part[["sequence"]])) for part in parts]
        )
    except ValueError as error:  # a sequence with letters that are none, for example
        sys.exit(f"{args.fasta}: {error}")
    answers.to_csv(
        sys.stdout if args.out == "-" else args.out, sep="\t", index=False, float_format="%.6g"
    )


if __name__ == "__main__":
    main()
