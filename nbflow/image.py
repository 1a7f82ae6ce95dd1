"""`nf.image`: images, (n, height, width, channels) unless a `data_format` says otherwise. See `nbflow/ops/image.py`."""

from nbflow.ops.boxes import non_max_suppression, roi_align
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
from nbflow.ops.patches import fold, unfold
from nbflow.ops.resizing import resample
from nbflow.ops.sampling import affine_grid, crop_and_resize, grid_sample

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "adjust_hue",
    "adjust_saturation",
    "affine_grid",
    "central_crop",
    "crop",
    "crop_and_resize",
    "crop_or_pad",
    "depth_to_space",
    "flip",
    "flip_left_right",
    "flip_up_down",
    "fold",
    "grayscale_to_rgb",
    "grid_sample",
    "hsv_to_rgb",
    "non_max_suppression",
    "pad_to",
    "per_image_standardization",
    "random_crop",
    "random_flip_left_right",
    "random_flip_up_down",
    "resample",
    "resize",
    "rgb_to_grayscale",
    "rgb_to_hsv",
    "roi_align",
    "rot90",
    "space_to_depth",
    "unfold",
]
