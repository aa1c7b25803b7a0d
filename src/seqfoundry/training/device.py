"""The one meaning of ``--device``."""

from seqfoundry.core.errors import ConfigError


def wants_gpu(requested: str, has_gpu: bool, framework: str) -> bool:
    """Tell whether to use a GPU: ``auto`` if there is one, ``gpu`` in any case, ``cpu`` never.

    Raises
    ------
    ConfigError
        If ``gpu`` is asked for and ``framework`` finds none.
    """
    if requested == "gpu" and not has_gpu:
        raise ConfigError(
            f"--device gpu: must be on a machine with a GPU that {framework} can use, got none; "
            "use auto or cpu"
        )
    return has_gpu and requested != "cpu"
