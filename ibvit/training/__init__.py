"""Training: :func:`train` takes a configuration to a finished run folder."""

from ibvit.errors import CheckpointError, Interrupted, NonFiniteLossError
from ibvit.training.entry import train

__all__ = ["CheckpointError", "Interrupted", "NonFiniteLossError", "train"]
