"""DeepSigns for Keras: embed an owner's signature while a model trains, and prove it afterwards."""

from deepsigns_tf.callbacks import SignatureLogger
from deepsigns_tf.owner_key import Carrier, OwnerKey
from deepsigns_tf.perturbations import prune_weights
from deepsigns_tf.regularizers import SignatureRegularizer, owner_key_scope
from deepsigns_tf.release import release
from deepsigns_tf.statistics import DecisionRule
from deepsigns_tf.verification import Verdict, verify
from deepsigns_tf.watermarked_model import WatermarkedModel, WatermarkedSequential

__version__ = "0.1.0"

__all__ = [
    "Carrier",
    "DecisionRule",
    "OwnerKey",
    "SignatureLogger",
    "SignatureRegularizer",
    "Verdict",
    "WatermarkedModel",
    "WatermarkedSequential",
    "owner_key_scope",
    "prune_weights",
    "release",
    "verify",
]
