"""The augmentation as a DALI graph, for the GPU and (without one) for the CPU: one definition, two devices.

RandAugment's operations are built from DALI primitives so that each gives the pixels of torchvision's function on PIL
images. What is left between the two, measured by ``tests/data/test_dali_graph.py`` on its images:

    ==================  ======================================================================================
    decoding            libjpeg-turbo in both on the CPU: equal. nvJPEG rounds differently in places
    resizing            PIL rounds to 8 bits between its two passes and uses fixed-point weights; DALI does
                        neither: mean difference below 1 level
    Rotate              PIL walks source positions in 16.16 fixed point: single pixels on the edge of two
                        sources differ
    Equalize            DALI rounds its levels to 8 bits before they are stretched: at most 1 level
    Color, AutoContrast at most 1 level where the last bit of a product decides
    all others          none
    ==================  ======================================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.math as dmath
from numpy.typing import NDArray
from nvidia.dali import pipeline_def
from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType

from ibvit.data.files.tree import Stored
from ibvit.data.plans.augment import OPERATIONS, AugmentationPlan

_OP = {name: code for code, name in enumerate(OPERATIONS)}
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13  # PIL's ImageFilter.SMOOTH


def matrices(ops: NDArray[np.int64], magnitude: NDArray[np.floating], side: int) -> NDArray[np.float32]:
    """Output-to-input maps ``[b, 2, 3]`` of geometric operations; others get the identity.

    Example:
        >>> matrices(np.array([_OP["TranslateX"]]), np.array([30.0]), 224).tolist()
        [[[1.0, 0.0, -30.0], [0.0, 1.0, 0.0]]]
    """
    maps = np.tile(np.eye(2, 3), (len(ops), 1, 1))
    for name, row, column, sign in (
        ("ShearX", 0, 1, 1), ("ShearY", 1, 0, 1), ("TranslateX", 0, 2, -1), ("TranslateY", 1, 2, -1)
    ):  # fmt: skip
        is_op = ops == _OP[name]
        maps[is_op, row, column] = sign * magnitude[is_op]
    rotated = ops == _OP["Rotate"]
    angle = np.radians(magnitude[rotated])
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1).reshape(-1, 2, 2)
    centre = np.full(2, side / 2)
    maps[rotated] = np.concatenate([turn, (centre - turn @ centre)[..., None]], axis=-1)
    return maps.astype(np.float32)


def _truncated(values: Any) -> Any:
    """float → uint8 as C casts after clipping: towards zero."""
    return fn.cast(dmath.floor(values), dtype=DALIDataType.UINT8)


def _blend(base: Any, images: Any, factor: Any) -> Any:
    """PIL's ``Image.blend``: from ``base`` (factor 0) through the image (1) and beyond."""
    base = fn.cast(base, dtype=DALIDataType.FLOAT)
    return _truncated(base + factor * (fn.cast(images, dtype=DALIDataType.FLOAT) - base))


def _grey(images: Any) -> Any:
    return fn.color_space_conversion(images, image_type=DALIImageType.RGB, output_type=DALIImageType.GRAY)


def _smooth(images: Any, side: int, device: str) -> Any:
    """PIL's SMOOTH filter, which leaves the outermost pixels as they are."""
    inside = np.zeros((side, side, 3), dtype=np.uint8)
    inside[1:-1, 1:-1] = 255
    smooth = fn.filter(images, Constant(_SMOOTH, device=device))
    return images ^ ((images ^ smooth) & Constant(inside, device=device))


def _autocontrast(images: Any) -> Any:
    """Each channel stretched to 0 … 255; a constant channel stays."""
    low = fn.cast(fn.reductions.min(images, axes=[0, 1], keep_dims=True), dtype=DALIDataType.FLOAT)
    high = fn.cast(fn.reductions.max(images, axes=[0, 1], keep_dims=True), dtype=DALIDataType.FLOAT)
    constant = fn.cast(high == low, dtype=DALIDataType.FLOAT)
    scale = 255.0 / (high - low + 255.0 * constant)
    return _truncated((fn.cast(images, dtype=DALIDataType.FLOAT) - low * (1.0 - constant)) * scale + 1e-3)


def _equalize(images: Any, side: int) -> Any:
    """PIL's equalization: it counts the pixels below a level, in whole steps of 1/255 of those below the highest level.

    DALI's counts them up to the level, which is the same thing on the negative, and divides exactly, hence ``stretch``.
    """
    white = Constant(np.uint8(255))
    levels = fn.cast(fn.equalize(images ^ white) ^ white, dtype=DALIDataType.FLOAT)
    highest = images == fn.reductions.max(images, axes=[0, 1], keep_dims=True)
    below = side * side - fn.reductions.sum(fn.cast(highest, dtype=DALIDataType.FLOAT), axes=[0, 1], keep_dims=True)
    step = dmath.floor(below / 255.0)
    too_few = fn.cast(step == 0.0, dtype=DALIDataType.FLOAT)  # pixels to equalize: the channel stays
    stretch = (below / 255.0) / (step + too_few)
    unchanged = fn.cast(images, dtype=DALIDataType.FLOAT)
    return _truncated((1.0 - too_few) * (levels * stretch + 0.5) + too_few * unchanged)


def operate(images: Any, op: Any, magnitude: Any, matrix: Any, side: int, device: str) -> Any:
    """One RandAugment operation per sample, uint8 HWC; ``op`` is an index into OPERATIONS.

    Args:
        magnitude: float, as in :func:`ibvit.data.plans.augment.magnitudes`.
        matrix: float ``[2, 3]`` from :func:`matrices`.
        side: of the images, pixels.
        device: where the images are, "gpu" or "cpu".
    """
    if device == "gpu":
        magnitude = magnitude.gpu()
    white = Constant(np.uint8(255))
    if op >= _OP["ShearX"] and op <= _OP["Rotate"]:
        images = fn.warp_affine(images, matrix=matrix, interp_type=DALIInterpType.INTERP_NN, fill_value=0)
    elif op == _OP["Brightness"]:
        images = _blend(0.0 * magnitude, images, 1.0 + magnitude)
    elif op == _OP["Color"]:
        images = _blend(_grey(images), images, 1.0 + magnitude)
    elif op == _OP["Contrast"]:
        images = _blend(dmath.floor(fn.reductions.mean(_grey(images)) + 0.5), images, 1.0 + magnitude)
    elif op == _OP["Sharpness"]:
        images = _blend(_smooth(images, side, device), images, 1.0 + magnitude)
    elif op == _OP["Posterize"]:
        images = images & fn.cast(256.0 - dmath.pow(2.0, 8.0 - magnitude), dtype=DALIDataType.UINT8)
    elif op == _OP["Solarize"]:
        images = images ^ (fn.cast(images >= magnitude, dtype=DALIDataType.UINT8) * white)
    elif op == _OP["AutoContrast"]:
        images = _autocontrast(images)
    elif op == _OP["Equalize"]:
        images = _equalize(images, side)
    return images


def arguments(plan: AugmentationPlan, side: int) -> dict[str, NDArray[Any]]:
    """A plan as the inputs of :func:`augment_graph`, one row per sample."""
    inputs: dict[str, NDArray[Any]] = {
        **window_arguments(plan),
        "size": plan.size.astype(np.float32),
        "offset": plan.offset.astype(np.int32),
        "flip": plan.flip.astype(np.int32),
    }
    for turn in range(plan.ops.shape[1]):
        op, magnitude = plan.ops[:, turn], plan.magnitude[:, turn]
        inputs[f"op{turn}"] = op.astype(np.int32)
        inputs[f"magnitude{turn}"] = magnitude.astype(np.float32)
        inputs[f"matrix{turn}"] = matrices(op, magnitude, side)
    return inputs


def window_arguments(plan: AugmentationPlan) -> dict[str, NDArray[Any]]:
    """The part of a plan that :func:`decode_graph` needs."""
    return {"start": plan.window[:, :2].astype(np.int32), "shape": plan.window[:, 2:].astype(np.int32)}


def _input(name: str, dtype: Any, ndim: int) -> Any:
    return fn.external_source(name=name, dtype=dtype, ndim=ndim)


def _decoded_window(device: str) -> Any:
    """The window of an encoded image, decoded as PIL decodes it."""
    return fn.decoders.image_slice(
        fn.external_source(name="images", dtype=DALIDataType.UINT8, ndim=1, no_copy=True),
        start=_input("start", DALIDataType.INT32, 1),
        shape=_input("shape", DALIDataType.INT32, 1),
        axes=[0, 1],
        device=device,
        output_type=DALIImageType.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        affine=False,  # else the threads of all ranks are tied to the same few cores
        hw_decoder_load=0.0,  # it would take a share of each batch, and pixels depend on an image's neighbours there
    )


@pipeline_def(prefetch_queue_depth=1)
def decode_graph() -> Any:
    """Encoded images and their windows (:func:`window_arguments`) → the windows' pixels, on the CPU."""
    return _decoded_window("cpu")


@pipeline_def(enable_conditionals=True, prefetch_queue_depth=1)
def augment_graph(side: int, num_ops: int, device: str, stored: Stored) -> Any:
    """Images and their plan (:func:`arguments`) → uint8 ``[side, side, 3]``.

    Args:
        side: of the square that the model sees, pixels.
        num_ops: RandAugment operations.
        device: "gpu" or "cpu".
        stored: as encoded files, or as pixels ``[height, width, 3]`` in the machine's memory or on the device.
    """
    images: Any
    if stored == "encoded":
        images = _decoded_window("mixed" if device == "gpu" else "cpu")
    else:
        input_device = "gpu" if stored == "device" else "cpu"
        images = fn.slice(
            fn.external_source(
                name="images", dtype=DALIDataType.UINT8, ndim=3, layout="HWC", device=input_device, no_copy=True
            ),
            start=_input("start", DALIDataType.INT32, 1),
            shape=_input("shape", DALIDataType.INT32, 1),
            axes=[0, 1],
        )
        if device == "gpu":
            images = images.gpu()
    images = fn.resize(
        images, size=_input("size", DALIDataType.FLOAT, 1), interp_type=DALIInterpType.INTERP_CUBIC, antialias=True
    )
    images = fn.slice(images, start=_input("offset", DALIDataType.INT32, 1), shape=[side, side], axes=[0, 1])
    images = fn.flip(images, horizontal=_input("flip", DALIDataType.INT32, 0))
    for turn in range(num_ops):
        op = _input(f"op{turn}", DALIDataType.INT32, 0)
        magnitude = _input(f"magnitude{turn}", DALIDataType.FLOAT, 0)
        matrix = _input(f"matrix{turn}", DALIDataType.FLOAT, 2)
        images = operate(images, op, magnitude, matrix, side, device)
    return images
