"""Kernels compiled by numba, with a cache on disk where some folder can be written."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(function: Kernel) -> Kernel:
    """Compile a function without the interpreter lock.

    A read-only installation for a user without a home has no place for the cache: then every
    process compiles.
    """
    try:
        return cast("Kernel", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:
        return cast("Kernel", numba.njit(nogil=True)(function))
