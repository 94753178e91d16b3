"""The bottleneck kernels with the constants and tiles that a given shape gets on a given GPU, ready to be compiled."""

from __future__ import annotations

from typing import Any

from ibvit_kernels.bottleneck.backward import backward_kernel
from ibvit_kernels.bottleneck.forward import forward_kernel
from ibvit_kernels.bottleneck.host import backward_constants, forward_constants, pack_constants, unmerge_constants
from ibvit_kernels.bottleneck.pack import pack_kernel, unmerge_kernel
from ibvit_kernels.bottleneck.tiles import Shape, backward_launches, forward_tile

# kernel, signature, constexprs, options: what `resources.compile_kernel` takes
Job = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]
ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
PARAMS = ("w1", "b1", "w2", "b2", "w3", "b3", "w4", "b4", "proj_weight", "proj_bias")


def variants(arch: int, shape: Shape, dtype: str) -> list[tuple[str, Job]]:
    """(name, job) of each launch of one forward and backward pass, activations of `dtype` over float32 parameters."""
    itemsize = ITEMSIZE[dtype]
    parameters = dict.fromkeys(PARAMS, "*fp32")
    activations = dict.fromkeys(("y", "weights", "update", "d_update", "d_y"), f"*{dtype}")
    floats = dict.fromkeys(
        ("biases", "kl", "d_kl", "parts", "d_merged", "d_bias", "d_w4", "d_b4", "d_proj_weight"), "*fp32"
    )
    integers = {"key": "*i64"} | dict.fromkeys(("block", "rows", "tokens"), "i32")
    types = parameters | activations | floats | integers

    def job(kernel: Any, constants: Any) -> Job:
        constants = dict(constants)  # the original is cached
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
        signature = {name: types[name] for name in kernel.arg_names if name not in constants}
        return kernel, signature, constants, options

    jobs = [
        ("pack", job(pack_kernel, pack_constants(shape))),
        ("forward", job(forward_kernel, forward_constants(shape, forward_tile(arch, shape, itemsize)))),
        ("unmerge", job(unmerge_kernel, unmerge_constants(shape))),
    ]
    for launch in backward_launches(arch, shape, itemsize):
        made = "+".join(name for name, wanted in launch._asdict().items() if wanted is True and name != "reload")
        jobs.append((f"backward {made}", job(backward_kernel, backward_constants(shape, launch))))
    return jobs
