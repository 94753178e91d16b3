"""Figures and the report: draws results of :mod:`ibvit.analysis`; knows neither models nor data."""

from importlib.util import find_spec

from ibvit.errors import MissingExtraError

if find_spec("matplotlib") is None:
    raise MissingExtraError("drawing", "matplotlib", "figures")
