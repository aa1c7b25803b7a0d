import pytest
import torch

from seqfoundry.core.errors import ConfigError
from seqfoundry.training.device import wants_gpu
from seqfoundry.training.torch import choose_device


@pytest.mark.parametrize(
    ("requested", "has_gpu", "answer"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("gpu", True, True),
        ("cpu", True, False),
        ("cpu", False, False),
    ],
)
def test_wants_gpu(requested: str, has_gpu: bool, answer: bool) -> None:
    assert wants_gpu(requested, has_gpu, "JAX") is answer


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"--device gpu: must be .* that JAX can use, got none"):
        wants_gpu("gpu", False, "JAX")


def test_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
