"""Model-from-code.

The adapter from MLflow's pyfunc protocol to a family's ``serve`` module, one for all families.

MLflow runs this file when it loads a model. Where the project is installed the installed code
answers, else the copy of the package that travels with the model.
"""

import importlib
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class FamilyModel(mlflow.pyfunc.PythonModel):
    """A family's model: a table in, the new columns out, same index and order."""

    def load_context(self, context: Any) -> None:
        """Load the family here, so that only the serving process pays for its framework."""
        self.serve = importlib.import_module(f"seqfoundry.{context.model_config['family']}.serve")
        self.model = self.serve.load(Path(context.artifacts["model"]))
        importlib.import_module("seqfoundry.registry.scoring_server").guard()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answer with the family's new columns.

        ``params`` are those that its ``serve.PARAMS`` names.
        """
        answer: pd.DataFrame = self.serve.predict(self.model, model_input, **(params or {}))
        return answer


mlflow.models.set_model(FamilyModel())
