"""DeepSigns for Keras: embed an owner's signature while a model trains, and prove it afterwards."""

from deepsigns_tf.batch_norm import reestimate_batch_norm
from deepsigns_tf.callbacks import SignatureLogger, TriggerLogger
from deepsigns_tf.carriers import Carrier
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.perturbations import prune_weights, shake_weights
from deepsigns_tf.questioning import Questioning
from deepsigns_tf.regularizers import SignatureRegularizer, owner_key_scope
from deepsigns_tf.release import release
from deepsigns_tf.statistics import DecisionRule
from deepsigns_tf.suspect_files import SuspectLimits
from deepsigns_tf.suspects import Suspect, load_suspect
from deepsigns_tf.trigger_verification import TriggerVerdict, verify_predict_fn, verify_predictions
from deepsigns_tf.triggers import TriggerSet, mix_triggers
from deepsigns_tf.verification import Verdict, verify
from deepsigns_tf.watermarked_model import WatermarkedModel, WatermarkedSequential

__version__ = "0.1.0"

__all__ = [
    "Carrier",
    "DecisionRule",
    "OwnerKey",
    "Questioning",
    "SignatureLogger",
    "SignatureRegularizer",
    "Suspect",
    "SuspectLimits",
    "TriggerLogger",
    "TriggerSet",
    "TriggerVerdict",
    "Verdict",
    "WatermarkedModel",
    "WatermarkedSequential",
    "load_suspect",
    "mix_triggers",
    "owner_key_scope",
    "prune_weights",
    "reestimate_batch_norm",
    "release",
    "shake_weights",
    "verify",
    "verify_predict_fn",
    "verify_predictions",
]
