"""Columns of a V(D)J recombination model beside those of an AIRR rearrangement table.

TSV in, TSV out.

``probability`` of the trimming that a row's alignment shows, ``expected_*`` and ``likely_*``
trims; where it does not show one, what to expect of the genes alone. Needs mlflow, pandas and what
the model itself lists:

    python examples/annotate_airr.py airr.tsv --model models:/vdj-twostep-em@champion --out
    annotated.tsv
"""

import argparse
import os
import sys

import pandas as pd

GENES = {"v_gene": "v_call", "j_gene": "j_call"}
TRIMS = range(-2, 15)  # that the model describes; negative: P-nucleotides


def number(table, column):
    """Read a column as numbers; unknown where it is absent or empty."""
    return pd.to_numeric(table.get(column, pd.Series("", table.index)), errors="coerce")


def trims(table):
    """Germline nucleotides left out where V and J meet, less P-nucleotides."""
    cigars = table.get("v_cigar", pd.Series("", table.index))
    ending = pd.to_numeric(cigars.str.extract(r"(\d+)N$")[0]).fillna(0).where(cigars != "")
    made = pd.DataFrame({"v_trim": ending - number(table, "p3v_length").fillna(0)})
    made["j_trim"] = number(table, "j_germline_start") - 1 - number(table, "p5j_length").fillna(0)
    return made.where(made.isin(TRIMS).all(axis=1)).astype(
        "float64"
    )  # whole numbers too, where none is missing


def unknown(model, column, names):
    """Return the names that the model refuses, and say why."""
    found = set()
    for name in names:
        try:
            model.predict(
                pd.DataFrame(
                    {key: [name if key == column else None] for key in GENES}, dtype="object"
                )
            )
        except LookupError as error:
            print(f"no answer for {name}: {error}", file=sys.stderr)
            found.add(name)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help="AIRR rearrangements, plain or .gz")
    parser.add_argument(
        "--model", required=True, help="models:/NAME@champion, or an exported folder"
    )
    parser.add_argument("--out", default="-", help="TSV file (default: standard output)")
    args = parser.parse_args()
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    import mlflow

    table = pd.read_csv(args.table, sep="\t", dtype=str, keep_default_na=False)
    if absent := [column for column in GENES.values() if column not in table]:
        sys.exit(
            f"{args.table}: must have the columns v_call and j_call, got none named {absent[0]}"
        )
    model = mlflow.pyfunc.load_model(args.model)
    asked = pd.DataFrame(
        {key: table[column].str.split(",").str[0] for key, column in GENES.items()}
    )
    asked = asked.where(asked != "", None)
    for column in GENES:
        refused = unknown(model, column, asked[column].dropna().unique())
        asked[column] = asked[column].where(~asked[column].isin(refused), None)
    if asked.isna().any(axis=1).all():
        sys.exit(f"{args.table}: must have a row with two genes that the model knows, got none")
    answers = model.predict(asked.join(trims(table))).drop(columns="configurations")
    made = table.join(answers.round(6), rsuffix="_of_model")
    made.to_csv(sys.stdout if args.out == "-" else args.out, sep="\t", index=False)


if __name__ == "__main__":
    main()
