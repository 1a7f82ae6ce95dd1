"""`nf.image`: images, (n, height, width, channels) unless a `data_format` says otherwise. See `nbflow/ops/image.py`."""

from nbflow.ops.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    adjust_hue,
    adjust_saturation,
    grayscale_to_rgb,
    hsv_to_rgb,
    per_image_standardization,
    rgb_to_grayscale,
    rgb_to_hsv,
)
from nbflow.ops.image import (
    central_crop,
    crop,
    crop_or_pad,
    depth_to_space,
    flip_left_right,
    flip_up_down,
    pad_to,
    random_crop,
    random_flip_left_right,
    random_flip_up_down,
    resize,
    rot90,
    space_to_depth,
)
from nbflow.ops.manipulation import flip
from nbflow.ops.resizing import resample

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "adjust_hue",
    "adjust_saturation",
    "central_crop",
    "crop",
    "crop_or_pad",
    "depth_to_space",
    "flip",
    "flip_left_right",
    "flip_up_down",
    "grayscale_to_rgb",
    "hsv_to_rgb",
    "pad_to",
    "per_image_standardization",
    "random_crop",
    "random_flip_left_right",
    "random_flip_up_down",
    "resample",
    "resize",
    "rgb_to_grayscale",
    "rgb_to_hsv",
    "rot90",
    "space_to_depth",
]
