"""Models: the vision transformer, its bottlenecks, KL accounting, and interventions."""

from ibvit.models.create import create_model, load, load_backbone, read_state_dict, save_model
from ibvit.models.interventions import noise, replace, run_with_cache, silence, unwrap, use_mean
from ibvit.models.vit import Block, Output, VisionTransformer

__all__ = [
    "Block",
    "Output",
    "VisionTransformer",
    "create_model",
    "load",
    "load_backbone",
    "noise",
    "read_state_dict",
    "replace",
    "run_with_cache",
    "save_model",
    "silence",
    "unwrap",
    "use_mean",
]
