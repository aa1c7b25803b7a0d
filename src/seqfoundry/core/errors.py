"""Errors raised on purpose.

The command line prints their message and exits with their status, without a traceback.

A message has the form *where: what must hold, got what*, so that it helps without the code at
hand.
"""


class SeqfoundryError(Exception):
    """Base of every error that the user's input, settings or surroundings can cause."""

    status = 2


class InputError(SeqfoundryError, ValueError):
    """Data handed in do not have the promised form."""


class ConfigError(SeqfoundryError, ValueError):
    """A settings file or an override is not legal."""


class MissingError(SeqfoundryError, LookupError):
    """A model, alias, run, family or file that was named does not exist."""


class ModelError(SeqfoundryError, ValueError):
    """A model folder is damaged, incomplete, of another family or of an unknown format."""


class OutputError(SeqfoundryError, OSError):
    """Results cannot be written where they were asked for."""


class TrackingError(SeqfoundryError, ConnectionError):
    """The tracking store cannot be reached or refuses the request."""


class GateError(SeqfoundryError, ValueError):
    """A model does not pass the gates of its own settings, or is worse than the champion."""

    status = 3


class InterruptedRunError(SeqfoundryError, RuntimeError):
    """The process was asked to stop; what was done so far has been saved."""
