"""What a run shows and checks."""

from lit_msrl.callbacks.checkpoints import Checkpoints
from lit_msrl.callbacks.completions import CompletionTable
from lit_msrl.callbacks.flat_rewards import FlatRewardsWarning
from lit_msrl.callbacks.non_finite import NonFiniteSteps
from lit_msrl.callbacks.trainable_parts import TrainablePartsCheck

__all__ = ["Checkpoints", "CompletionTable", "FlatRewardsWarning", "NonFiniteSteps", "TrainablePartsCheck"]
