"""Figures and the report: draws results of :mod:`ibvit.analysis`; imports neither models nor data."""

from ibvit.errors import MissingExtraError, is_installed

if not is_installed("matplotlib"):
    raise MissingExtraError("drawing", "matplotlib", "figures")
