"""Models: the vision transformer, its bottlenecks, KL accounting, and interventions."""

from ibvit.models.create import create_model, load, save_model
from ibvit.models.interventions import noise, replace, run_with_cache, silence, unwrap, use_mean
from ibvit.models.loaded import Loaded
from ibvit.models.sources import read_state_dict
from ibvit.models.vit import Block, Output, VisionTransformer
from ibvit.models.weights import load_backbone, load_weights

__all__ = [
    "Block",
    "Loaded",
    "Output",
    "VisionTransformer",
    "create_model",
    "load",
    "load_backbone",
    "load_weights",
    "noise",
    "read_state_dict",
    "replace",
    "run_with_cache",
    "save_model",
    "silence",
    "unwrap",
    "use_mean",
]
