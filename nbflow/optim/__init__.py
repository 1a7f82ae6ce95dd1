"""`nf.optim`: optimizers. `minimize(loss)` gives the op that makes one training step."""

from nbflow.optim import schedule
from nbflow.optim.optimizer import LearningRate, Optimizer, Strategy
from nbflow.optim.rules import SGD, Adagrad, Adam, AdamW, RMSProp

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "LearningRate", "Optimizer", "RMSProp", "Strategy", "schedule"]
