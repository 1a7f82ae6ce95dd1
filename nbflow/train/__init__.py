"""Training: `nf.train.run` sends the loop to the workers; the notebook receives metrics and can stop it."""

from nbflow.parallel import DataParallel, LocalSGD, Pipeline
from nbflow.train.attach import attach
from nbflow.train.checkpoint import Restored, restore, save
from nbflow.train.run import Run
from nbflow.train.start import run

__all__ = ["DataParallel", "LocalSGD", "Pipeline", "Restored", "Run", "attach", "restore", "run", "save"]
