"""Train, track, version and serve sequencing models."""

__version__ = "0.1.0"
