"""Information that channels carry: mutual information, normalised mutual information."""

from ibvit.information.api import mutual_information, nmi, nmi_matrix
from ibvit.information.channel import load_channel
from ibvit.information.estimate import Estimate, EstimateMatrix

__all__ = ["Estimate", "EstimateMatrix", "load_channel", "mutual_information", "nmi", "nmi_matrix"]
