"""The errors that a user can cause; each says which file, field or value is wrong and what to do."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field and what to do."""


class TrainingError(RuntimeError):
    """Training, or other work of many processes, that cannot go on."""


class LostWorkError(TrainingError):
    """Training that ended with its workers, or by an error that is none of these: it may go on another time."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what is wrong and what to do."""


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names the file or field and what to do."""


class UnreachableError(DatasetError, OSError):
    """A file that could not be reached, for whatever passes again: a stale mount, a network, a store that is down."""
