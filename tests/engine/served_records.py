"""Contents of ``served.json`` for models that exist in a test only."""

from typing import Any

_OF_ALL = {
    "format_version": 1,
    "package_version": "0.0",
    "about": "a",
    "limits": [],
    "input_columns": ["sequence"],
}
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "reads": {"labels": [], "barcodes": [], "umis": [], "insert": "cDNA", "strand": "fwd"},
    "copynumber": {"genes": [], "plasmid_genes": []},
    "enhancer": {
        "cell_types": [],
        "seq_len": 512,
        "oracle": "deepstarr_7cell",
        "panel": {"cell_types": [], "pearson": {}},
    },
    "vdj": {"locus": "TRA", "coefficients": []},
}


def served_record(family: str, **values: Any) -> dict[str, Any]:
    """Return a whole record of a family, with ``values`` instead of those that say nothing."""
    name = f"{family}-model"
    return {
        **_OF_ALL,
        "family": family,
        "registered_name": name,
        **_OF_FAMILY[family],
        **values,
    }
