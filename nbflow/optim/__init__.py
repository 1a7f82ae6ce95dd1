"""`nf.optim`: optimizers. `minimize(loss)` gives the op that makes one training step."""

from nbflow.optim import schedule
from nbflow.optim.averages import ExponentialMovingAverage
from nbflow.optim.clip import Clip, clip_by_global_norm, clip_by_norm, clip_by_value, global_norm
from nbflow.optim.optimizer import LearningRate, Optimizer, Strategy
from nbflow.optim.rules import LARS, SGD, Adagrad, Adam, AdamW, Lamb, Lion, RMSProp
from nbflow.optim.scaling import DynamicLossScale

__all__ = [
    "LARS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Clip",
    "DynamicLossScale",
    "ExponentialMovingAverage",
    "Lamb",
    "LearningRate",
    "Lion",
    "Optimizer",
    "RMSProp",
    "Strategy",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "global_norm",
    "schedule",
]
