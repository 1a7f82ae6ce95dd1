"""`nf.linalg`: linear algebra. See `nbflow/ops/{linalg,matrices,solving,decompositions,norms}.py`."""

from nbflow.ops.decompositions import cholesky, eigh, eigvalsh, qr, svd, svdvals
from nbflow.ops.linalg import matmul, outer, tensordot, vecdot
from nbflow.ops.manipulation import matrix_transpose
from nbflow.ops.matrices import cross, diagonal, trace
from nbflow.ops.norms import matrix_norm, matrix_rank, vector_norm
from nbflow.ops.solving import det, inv, matrix_power, pinv, slogdet, solve

__all__ = [
    "cholesky",
    "cross",
    "det",
    "diagonal",
    "eigh",
    "eigvalsh",
    "inv",
    "matmul",
    "matrix_norm",
    "matrix_power",
    "matrix_rank",
    "matrix_transpose",
    "outer",
    "pinv",
    "qr",
    "slogdet",
    "solve",
    "svd",
    "svdvals",
    "tensordot",
    "trace",
    "vecdot",
    "vector_norm",
]
