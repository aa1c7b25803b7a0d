"""Logistic regression, fitted by gradient descent."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass
class CodingModel:
    """Weights of the codons ``(64,)`` and a constant."""

    weights: Floats
    constant: float

    def probability(self, shares: Floats) -> Floats:
        """Probability that sequences code, ``(n,)``."""
        probability: Floats = 1 / (1 + np.exp(-(shares @ self.weights + self.constant)))
        return probability

    def step(self, shares: Floats, is_coding: Floats, learning_rate: float) -> float:
        """Go one step down the gradient, and return the loss before it, in nats."""
        probability = self.probability(shares)
        error = probability - is_coding
        likelihood = np.where(is_coding == 1, probability, 1 - probability)
        self.weights = self.weights - learning_rate * 64 * (shares.T @ error) / len(error)
        self.constant -= learning_rate * float(error.mean())
        return float(-np.log(likelihood).mean())
