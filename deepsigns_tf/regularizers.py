"""The one argument that an engineer adds to a layer: `activity_regularizer=SignatureRegularizer(...)`."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from deepsigns_tf.activations import all_reduce_sum, class_means, class_membership, class_sums, num_features, pool
from deepsigns_tf.carriers import Carrier
from deepsigns_tf.label_scope import BatchReading, LabelScope, current_label_scope
from deepsigns_tf.losses import clustering_loss, signature_loss
from deepsigns_tf.owner_key import OwnerKey

Tensor = Any

_revival = threading.local()


@contextlib.contextmanager
def owner_key_scope(owner_key: OwnerKey) -> Iterator[None]:
    """Gives regularizers that are revived from a file their key back, so that training can go on.

    Args:
        owner_key: The key with which the model was being marked.

    Example:

    >>> from deepsigns_tf.carriers import Carrier
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)])
    >>> config = SignatureRegularizer(key, "features").get_config()
    >>> with owner_key_scope(key):
    ...     SignatureRegularizer.from_config(config).owner_key is key
    True
    """
    outer = getattr(_revival, "owner_key", None)
    _revival.owner_key = owner_key
    try:
        yield
    finally:
        _revival.owner_key = outer


@keras.saving.register_keras_serializable(package="deepsigns_tf")
class SignatureRegularizer(keras.regularizers.Regularizer):
    r"""Embeds a carrier's signature into the activation means of the layer it is attached to.

    In a training step of a `WatermarkedModel` it shows the model the layer's activations, and the model adds

    \( \lambda_2 L_{\mathrm{sig}}(\mu A, b) \) with the batch's own class means (`centres="batch"`), or
    \( \lambda_2 L_{\mathrm{sig}}(\mu A, b) + \lambda_1 L_{\mathrm{clu}}(f, \mu) \) with trainable means (`"learned"`).

    to its loss. As a Keras regularizer its value is always 0, so inference, evaluation and a plain `keras.Model` see
    nothing of it. It goes on any layer that takes `activity_regularizer` and puts out one tensor, channels last; on the
    wrapper, not the wrapped layer, of a `Bidirectional`.

    Args:
        owner_key: The owner's key. Its secrets enter no config, checkpoint or graph file.
        carrier: Name of the key's carrier that this layer plays.
        strength: \( \lambda_2 \), weight of the signature loss beside the task's per-example loss, >= 0. At 0 the model
            trains exactly as an unmarked one and the mark is only measured.
        centres: Where the class means come from: `"batch"`, or `"learned"` as in the paper.
        clustering_strength: \( \lambda_1 \), weight of the clustering loss, >= 0; only with learned centres.
        separation: \( \delta \), the squared distance between two centres at which they cease to repel each other, >= 0;
            only with learned centres. The paper's repulsion never ends: the larger, the closer to it, and 0 is none.

    Raises:
        ValueError: If the carrier is unknown or an argument out of range.

    Example:

    >>> from deepsigns_tf.carriers import Carrier
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)])
    >>> layer = keras.layers.Dense(512, activity_regularizer=SignatureRegularizer(key, "features"))

    Source: DeepSigns, section 3.1.
    """

    def __init__(
        self,
        owner_key: OwnerKey,
        carrier: str,
        strength: float = 1.0,
        centres: Literal["batch", "learned"] = "batch",
        clustering_strength: float = 0.01,
        separation: float = 1.0,
    ) -> None:
        self._configure(
            owner_key.carrier(carrier), owner_key.fingerprint, strength, centres, clustering_strength, separation
        )
        self.owner_key: OwnerKey | None = owner_key

    def _configure(
        self,
        carrier: Carrier,
        fingerprint: str,
        strength: float,
        centres: str,
        clustering_strength: float,
        separation: float,
    ) -> None:
        numbers = {"strength": strength, "clustering_strength": clustering_strength, "separation": separation}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < float("inf"):
                raise ValueError(
                    f"Invalid value for argument `{name}`. Expected a finite number >= 0. Received: {name}={value!r}"
                )
        if centres not in ("batch", "learned"):
            raise ValueError(
                f'Invalid value for argument `centres`. Expected "batch" or "learned". Received: centres={centres!r}'
            )
        self.carrier = carrier
        self.key_fingerprint = fingerprint
        self.strength = float(strength)
        self.centres = centres
        self.clustering_strength = float(clustering_strength)
        self.separation = float(separation)
        self.num_units: int | None = None
        self.projection: Any = None
        self.signs: Any = None

    def observe(self, shape: tuple[int | None, ...]) -> None:
        """Learns the width of the layer from the shape of its output.

        Args:
            shape: `(batch, ...)` with the batch axis first.

        Raises:
            ValueError: If another layer of another width was seen before, or the width is not fixed.
        """
        num_units = num_features(shape, self.carrier.pooling)
        if self.num_units not in (None, num_units):
            raise ValueError(
                f"The regularizer of carrier {self.carrier.name!r} is attached to layers of different width. Expected a regularizer "
                f"of its own for each layer. Received: num_units={self.num_units} and {num_units}"
            )
        self.num_units = num_units

    def build(self) -> None:
        """Derives projection and signature for the width that the layer was seen to have.

        They are held as variables that no layer tracks: a constant would stand in clear in the graph that TensorBoard
        writes, a tracked variable in every checkpoint.

        Raises:
            ValueError: If the layer is too narrow for the bits.
        """
        if self.owner_key is None or self.num_units is None or self.projection is not None:
            return
        self.projection = _hidden_variable(self.owner_key.projection(self.carrier.name, self.num_units), "projection")
        self.signs = _hidden_variable(2.0 * self.owner_key.signature(self.carrier.name) - 1.0, "signs")

    def logits(self, means: Tensor) -> Tensor:
        r"""Projects class means, \( z = \mu A \).

        Args:
            means: `(s, M)` float32.

        Returns:
            `(s, N)` float32; the sign of each is the bit that it says.
        """
        return ops.matmul(means, ops.convert_to_tensor(self.projection))

    def __call__(self, activations: Tensor) -> Tensor:
        self.observe(tuple(activations.shape))
        scope = current_label_scope()
        # Before the projection exists the call comes from Keras, which runs the model once to build it.
        if scope is None or (self.owner_key is not None and self.projection is None):
            return ops.zeros((), "float32")
        if self.owner_key is None:
            if scope.training:
                raise ValueError(
                    f"The regularizer of carrier {self.carrier.name!r} has no owner key and cannot train. Expected the model to "
                    "be loaded inside `with deepsigns_tf.owner_key_scope(owner_key):`, and the regularizer to stand on a "
                    "`Bidirectional` wrapper rather than on the layer inside it, which Keras copies without its key. "
                    f"Received: a regularizer revived from a config, key fingerprint {self.key_fingerprint}"
                )
            return ops.zeros((), "float32")
        # The model reads them when it computes its loss, see `WatermarkedModel.compute_loss`.
        scope.activations.setdefault(self.carrier.name, []).append(activations)
        return ops.zeros((), "float32")

    def read(self, activations: Tensor, scope: LabelScope) -> tuple[BatchReading, Tensor]:
        """What the activations say, and the weighted loss; sums over replicas are made here.

        Args:
            activations: `(batch, ..., channels)`, as the layer put them out in this step.
            scope: The scope of the step, with the batch's labels and the learned centres.

        Returns:
            The reading, and the float32 scalar that the carrier adds to the model's loss.
        """
        features = pool(activations, self.carrier.pooling)
        membership = class_membership(scope.labels, self.carrier.classes)
        sums, counts = class_sums(features, membership)
        signs = ops.convert_to_tensor(self.signs)
        present = ops.minimum(counts, 1.0)
        logits = self.logits(class_means(sums, counts))
        if self.centres == "learned":
            centres = ops.convert_to_tensor(scope.centres[self.carrier.name])
            loss = signature_loss(self.logits(centres), signs, ops.ones_like(counts))
            clustering = clustering_loss(features, membership, centres, self.separation, all_reduce_sum)
            value = self.strength * loss + self.clustering_strength * clustering
        else:
            loss = signature_loss(logits, signs, present)
            value = self.strength * loss
        return BatchReading(sums, counts, bit_error_rate(logits, signs, present), loss), value

    def get_config(self) -> dict[str, Any]:
        """Public parameters only: what stands here stands in clear in every `.keras` file."""
        return {
            "carrier": self.carrier.to_dict(),
            "key_fingerprint": self.key_fingerprint,
            "strength": self.strength,
            "centres": self.centres,
            "clustering_strength": self.clustering_strength,
            "separation": self.separation,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SignatureRegularizer":
        """Revives a regularizer: with the key of the current `owner_key_scope`, or inert without one.

        Raises:
            ValueError: If the scope's key is not the one that the model was marked with.
        """
        regularizer = cls.__new__(cls)
        carrier = Carrier(**config["carrier"])
        numbers = {name: config[name] for name in ("strength", "clustering_strength", "separation")}
        regularizer._configure(carrier, config["key_fingerprint"], centres=config["centres"], **numbers)
        owner_key = getattr(_revival, "owner_key", None)
        if owner_key is not None and (
            owner_key.fingerprint != regularizer.key_fingerprint or carrier not in owner_key.carriers
        ):
            raise ValueError(
                "This model was marked with another owner key. Expected the key with fingerprint "
                f"{regularizer.key_fingerprint} and carrier {carrier.name!r}. Received: fingerprint {owner_key.fingerprint}"
            )
        regularizer.owner_key = owner_key
        return regularizer


def bit_error_rate(logits: Tensor, signs: Tensor, present: Tensor) -> Tensor:
    """Share of wrong bits in the classes that are present.

    Args:
        logits: `(s, N)` projected class means.
        signs: `(s, N)` bits as -1 and +1.
        present: `(s,)` 1 for classes that have a mean, else 0.

    Returns:
        Scalar float32 in [0, 1]; 0 where no class is present.

    Example:

    >>> logits = np.array([[3.0, -1.0], [2.0, 2.0]])
    >>> float(bit_error_rate(logits, np.ones((2, 2)), np.array([1.0, 0.0])))
    0.5
    """
    wrong = ops.not_equal(ops.greater(logits, 0.0), ops.greater(signs, 0.0))
    present = ops.cast(present, "float32")
    errors = ops.sum(present * ops.mean(ops.cast(wrong, "float32"), axis=1))
    return errors / ops.maximum(ops.sum(present), 1.0)


def _hidden_variable(values: np.ndarray, name: str) -> Any:
    def initializer(shape: tuple[int, ...], dtype: str) -> Tensor:
        return ops.convert_to_tensor(values, dtype)

    # A function, not an array: Keras may be building the model inside a stateless scope, which takes no arrays.
    return keras.Variable(initializer, shape=values.shape, dtype="float32", trainable=False, autocast=False, name=name)
