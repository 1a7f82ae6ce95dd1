"""What of the official suite does not pass, and why. A case that passes in spite of a row here fails the tests.

`kind` says whose the reason is: "outside" what tensors in a graph are for, a "conflict" of versions in which the newer
one passes, what "cannot" be compared, or "not done" yet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from tests.onnx_suite.cases import SuiteCase


@dataclass(frozen=True)
class Exclusion:
    """Cases whose `kind/name` matches `pattern` as a whole."""

    pattern: str
    kind: str
    reason: str


_STRINGS = "strings: tensors hold numbers and booleans"
_RANDOM = "random numbers: nbflow's streams are its own, so the values differ from those of the file"
_OPTIMIZERS = "optimizers as operators (ai.onnx.preview.training): nf.optim updates variables instead"
_EITHER = "(node|in-process)/test_"

EXCLUDED = (
    Exclusion(_EITHER + r"(string_|strnorm|regex_full_match|equal_string).*", "outside", _STRINGS),
    Exclusion(_EITHER + r"ai_onnx_ml_label_encoder_.*", "outside", _STRINGS),
    Exclusion(r"simple/test_strnorm_.*", "outside", _STRINGS),
    Exclusion(_EITHER + r"image_decoder_.*", "outside", "image codecs: decode before feeding"),
    Exclusion(_EITHER + r"(adagrad|adam|momentum|nesterov_momentum)(_multiple)?", "outside", _OPTIMIZERS),
    Exclusion(r"simple/test_gradient_of_.*", "outside", "the operator Gradient: nf.gradients takes any tensor instead"),
    Exclusion(_EITHER + r"bernoulli.*", "cannot", _RANDOM),
    Exclusion(_EITHER + r"training_dropout(_default)?(_mask)?", "cannot", _RANDOM),
    Exclusion(
        r"node/test_attention_\dd.*_qk_matmul_(bias.*|softcap)(?<!expanded)",
        "conflict",
        "qk_matmul_output: later versions corrected at which step it is taken, and their cases pass",
    ),
    Exclusion(
        r"node/test_l2normalization_axis_0", "conflict", "a vector of zeros: NaN in 1.20, zeros in later versions"
    ),
    Exclusion(
        r"node/test_qlinearmatmul_\dD_int8_.*",
        "conflict",
        "overflow of int8: it wraps around in the files of 1.20, and saturates in later versions",
    ),
    Exclusion(_EITHER + r"ai_onnx_ml_tree_ensemble_.*", "not done", "tree ensembles"),
    Exclusion(
        r"in-process/test_attention_4d_causal_fp16(_expanded)?",
        "cannot",
        "the last bit of float16: nbflow adds in float32, what made the expected values does not",
    ),
)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def matches(exclusion: Exclusion, name: str) -> bool:
    """Whether the row covers the case called `kind/name`."""
    return _compiled(exclusion.pattern).fullmatch(name) is not None


def excluded(case: SuiteCase) -> Exclusion | None:
    """The row that covers `case`."""
    return next((e for e in EXCLUDED if matches(e, case.id)), None)
