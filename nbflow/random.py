"""`nf.random`: random tensors. See `nbflow/ops/random.py`."""

from nbflow.ops.random import bernoulli, normal, permutation, randint, truncated_normal, uniform, uniform_like

__all__ = ["bernoulli", "normal", "permutation", "randint", "truncated_normal", "uniform", "uniform_like"]
