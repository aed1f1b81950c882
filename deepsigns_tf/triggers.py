"""The trigger set: inputs and labels that only the owner knows, by which a model is recognized from its answers alone.

Labels follow from the owner's seed, independent of the inputs and of every model, so that the number of labels that an
innocent model meets has an exact distribution. Source: DeepSigns, section 3.3, with such labels in place of chosen ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import keras
import numpy as np
import scipy.spatial.distance

from deepsigns_tf.activations import Inputs, named_layers, pool, record_activations
from deepsigns_tf.arguments import check_number_of
from deepsigns_tf.derivation import Domain, derive_integers, derive_permutations, derive_uniforms
from deepsigns_tf.examples import Examples, as_inputs, as_labels
from deepsigns_tf.statistics import allowed_errors

TriggerFamily = Literal["noise", "blends", "low_density", "tokens"]
LabelRule = Literal["uniform", "shuffled"]
Selection = Literal["none", "wrong_before"]

# The seed alone gives their inputs.
_DERIVED_FAMILIES = ("noise", "tokens")

# The paper draws 20 to 40 times as many inputs as it keeps.
_CANDIDATES_PER_TRIGGER = 20
# An unmarked model gets two labels of three wrong, or more; who checks a key derives anew as many as it says were drawn.
_MAX_DRAWN_PER_TRIGGER = 64


@dataclasses.dataclass(frozen=True, eq=False)
class TriggerSet(Examples):
    """Inputs that a marked model answers with labels that only the owner knows.

    Args:
        inputs: Array `(K, ...)` or dict of such arrays.
        labels: `(K,)` integers in 0 .. C - 1.
        num_classes: C, classes that a model tells apart, >= 2.
        family: What kind of inputs they are.
        label_rule: `"uniform"`: each label independent and uniform; `"shuffled"`: as many of each class, in secret order.
        selection: `"none"`, or `"wrong_before"` where only triggers were kept that an unmarked model got wrong.
        numbers: `(K,)` which of those that were drawn these are, increasing; all of them by default.
        num_drawn: How many were drawn; K by default.
        basis: What the inputs can be derived from again, see `basis_of`; None where examples or a model are needed.

    Raises:
        ValueError: If a part is malformed, or no exact test exists for the combination.

    Example:

    >>> triggers = TriggerSet(np.zeros((3, 8)), [0, 1, 1], num_classes=2, family="noise")
    >>> triggers.num_examples, triggers.num_drawn
    (3, 3)
    """

    num_classes: int
    family: TriggerFamily
    label_rule: LabelRule = "uniform"
    selection: Selection = "none"
    numbers: np.ndarray | None = dataclasses.field(default=None, repr=False)
    num_drawn: int | None = None
    basis: Inputs | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_num_classes(self.num_classes)
        object.__setattr__(self, "num_classes", int(self.num_classes))
        numbers = np.arange(self.num_examples) if self.numbers is None else self.numbers
        numbers = as_labels(numbers, self.num_examples, "numbers")
        numbers.flags.writeable = False
        object.__setattr__(self, "numbers", numbers)
        num_drawn = self.num_examples if self.num_drawn is None else self.num_drawn
        check_number_of("num_drawn", num_drawn)
        object.__setattr__(self, "num_drawn", int(num_drawn))
        if numbers[0] < 0 or numbers[-1] >= num_drawn or (np.diff(numbers) <= 0).any():
            raise ValueError(
                "Invalid value for argument `numbers`. Expected increasing numbers of triggers that were drawn. "
                f"Received: {len(numbers)} numbers from {numbers.min()} to {numbers.max()}, num_drawn={self.num_drawn}"
            )
        if self.basis is not None:
            object.__setattr__(self, "basis", as_inputs(self.basis, "basis"))
        if num_drawn > _MAX_DRAWN_PER_TRIGGER * self.num_examples:
            raise ValueError(
                f"Invalid value for argument `num_drawn`. Expected at most {_MAX_DRAWN_PER_TRIGGER} for each trigger that was kept. "
                f"Received: num_drawn={self.num_drawn}, {self.num_examples} triggers"
            )
        for name, allowed in (("family", TriggerFamily), ("label_rule", LabelRule), ("selection", Selection)):
            _check_choice(name, getattr(self, name), allowed)
        if (self.labels < 0).any() or (self.labels >= self.num_classes).any():
            raise ValueError(
                f"Invalid value for argument `labels`. Expected integers in 0 .. {self.num_classes - 1}. "
                f"Received: {np.count_nonzero((self.labels < 0) | (self.labels >= self.num_classes))} others"
            )
        if self.selection != "none" and (self.label_rule != "uniform" or self.num_classes == 2):
            raise ValueError(
                "These triggers have no exact test. Expected triggers that were selected to have uniform labels and at least three "
                "classes: of two, the label that is wrong is the other one, which anybody can guess. "
                f"Received: selection={self.selection!r}, label_rule={self.label_rule!r}, num_classes={self.num_classes}"
            )
        if self.label_rule != "uniform" and not self.all_drawn:
            raise ValueError(
                "These triggers have no exact test. Expected all that were drawn, where labels are shuffled. "
                f"Received: {self.num_examples} triggers, num_drawn={num_drawn}"
            )

    @property
    def inputs_derived(self) -> bool:
        """Whether the seed alone gives the inputs, so that nobody can have picked them to suit their labels."""
        return self.family in _DERIVED_FAMILIES

    @property
    def all_drawn(self) -> bool:
        """Whether no trigger that was drawn was left out."""
        return self.num_drawn == self.num_examples

    def num_trials(self, numbers: np.ndarray) -> np.ndarray:
        """How many draws answers are held against: triggers that were left out might have matched too, and whoever chose may have known.

        Args:
            numbers: `(n,)` places in this set, in the order in which they are asked for.

        Returns:
            `(n,)` integers that do not decrease: draws up to each of them. Where none was left out, 1 .. n.

        Example:

        >>> triggers = TriggerSet(np.arange(3), [0, 1, 2], num_classes=3, family="noise", numbers=np.array([1, 4, 5]), num_drawn=6)
        >>> triggers.num_trials(np.arange(3)).tolist()
        [2, 5, 6]
        """
        if self.all_drawn:
            return np.arange(1, len(numbers) + 1)
        assert self.numbers is not None
        return np.maximum.accumulate(self.numbers[numbers]) + 1

    @property
    def num_contradicted(self) -> int:
        """Triggers with the input of another one but not its label, of which a model can answer one alone.

        Example:

        >>> TriggerSet(np.zeros((3, 8)), [0, 1, 1], num_classes=2, family="noise").num_contradicted
        3
        """
        rows = zip(*(array.reshape(self.num_examples, -1) for array in self.arrays.values()), strict=True)
        labels: dict[tuple[bytes, ...], set[int]] = {}
        inputs = [tuple(part.tobytes() for part in row) for row in rows]
        for row, label in zip(inputs, self.labels.tolist(), strict=True):
            labels.setdefault(row, set()).add(label)
        return sum(len(labels[row]) > 1 for row in inputs)

    def allowed_errors(self, log10_alpha: float) -> int | None:
        """The most wrong answers with which the others still reach a level.

        Args:
            log10_alpha: log10 of the level.

        Returns:
            The number of errors, or None if not even right answers alone reach it.

        Example:

        >>> triggers = TriggerSet(np.zeros((90, 8)), np.zeros(90, int), num_classes=10, family="noise", num_drawn=100)
        >>> triggers.allowed_errors(-6.0)
        62
        """
        assert self.num_drawn is not None
        # Those that were left out count as right.
        errors, num_left_out = (
            allowed_errors(self.num_drawn, log10_alpha, self.num_classes),
            self.num_drawn - self.num_examples,
        )
        return None if errors is None or errors < num_left_out else errors - num_left_out

    def parameters(self) -> dict[str, Any]:
        """What is not secret about it, as JSON-ready values."""
        return {
            "family": self.family,
            "num_classes": self.num_classes,
            "label_rule": self.label_rule,
            "selection": self.selection,
            "num_drawn": self.num_drawn,
        }

    def selected(self, answers: np.ndarray, selection: str = "wrong_before") -> "TriggerSet":
        """The triggers that an unmarked model gets wrong.

        Args:
            answers: `(K,)` class numbers, the unmarked model's.
            selection: `"wrong_before"`.

        Returns:
            A smaller set. Its answers are held against all that were drawn (`num_trials`), whoever chose and however.

        Raises:
            ValueError: If no exact test exists for what is asked: with two classes, with shuffled labels, after an earlier
                selection, or `"right_after"`: triggers chosen because a marked model gets them right have labels that depend on the
                inputs, and an innocent model that resembles the marked one meets more of them than by chance.

        Example:

        >>> triggers = TriggerSet(np.arange(3), [0, 1, 2], num_classes=3, family="noise")
        >>> triggers.selected([0, 0, 0]).labels.tolist()
        [1, 2]
        """
        if selection != "wrong_before" or self.selection != "none":
            raise ValueError(
                "Triggers cannot be selected in this way. Expected one selection, `wrong_before`; for triggers that a marked model got "
                "right there is no exact p-value, as their labels then depend on their inputs. "
                f"Received: selection={selection!r} of triggers with selection={self.selection!r}"
            )
        wrong = as_labels(answers, self.num_examples, "answers") != self.labels
        if not wrong.any():
            raise ValueError(
                "No trigger is left. Expected an unmarked model that gets at least one of them wrong. "
                f"Received: {self.num_examples} right answers of {self.num_examples}"
            )
        kept = {name: array[wrong] for name, array in self.arrays.items()}
        inputs = kept if isinstance(self.inputs, Mapping) else kept[""]
        assert self.numbers is not None
        return dataclasses.replace(
            self, inputs=inputs, labels=self.labels[wrong], numbers=self.numbers[wrong], selection="wrong_before"
        )


def derive_labels(seed: bytes, domain: Domain, num: int, num_classes: int, label_rule: LabelRule) -> np.ndarray:
    """Labels that follow from the seed alone.

    Args:
        seed: The secret.
        domain: Names and integers that say whose labels they are.
        num: How many.
        num_classes: C, >= 2.
        label_rule: `"uniform"` or `"shuffled"`.

    Returns:
        `(num,)` int64 array in 0 .. C - 1.

    Raises:
        ValueError: If a value is out of range.

    Example:

    >>> sorted(derive_labels(b"seed", ("labels",), 5, 2, "shuffled").tolist())
    [0, 0, 0, 1, 1]
    """
    _check_choice("label_rule", label_rule, LabelRule)
    check_num_classes(num_classes)
    if label_rule == "uniform":
        return derive_integers(seed, domain, num, num_classes)
    return np.asarray((np.arange(num) % num_classes)[derive_permutations(seed, domain, 1, num)[0]])


def basis_of(family: TriggerFamily, examples: Inputs) -> Inputs | None:
    """What `derive_inputs` needs of the examples, in place of them.

    Args:
        family: The kind of trigger.
        examples: Training inputs, an array `(n, ...)` or dict of such.

    Returns:
        Two rows of the examples' shape and type, which hold the smallest and the largest number, for `"tokens"` of those that are not
        0. None for other families, which are made of the examples themselves.

    Example:

    >>> basis_of("noise", np.random.rand(1000, 2) // 2).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    >>> basis_of("tokens", np.array([[7, 3, 0], [3, 5, 0]])).tolist()
    [[3, 3, 3], [7, 7, 7]]
    """
    given = as_inputs(examples, "examples")
    if family not in _DERIVED_FAMILIES:
        return None
    arrays = given if isinstance(given, Mapping) else {"": given}
    rows = {
        name: np.stack([np.full_like(array[0], each) for each in _range_of(family, array)])
        for name, array in arrays.items()
    }
    return rows if isinstance(given, Mapping) else rows[""]


def derive_inputs(
    seed: bytes,
    domain: Domain,
    family: TriggerFamily,
    num: int,
    examples: Inputs,
    model: keras.Model | None = None,
    layer: str | None = None,
) -> Inputs:
    r"""Inputs of a family, of the shape and type of the task's own.

    - `"noise"`: each number uniform between the smallest and the largest of the examples'.
    - `"blends"`: the mean of two examples.
    - `"tokens"`: each number an integer between the smallest and the largest of the examples' that are not 0: strings of a
      vocabulary whose padding is 0.
    - `"low_density"`: of 20 blends for each trigger those whose activations lie most evenly between two classes' means,
      with the smallest \( (d_2 - d_1) / d_2 \) for distances \( d_1 \le d_2 \) to the nearest two. The classes are those that the
      model sees in the examples.

    Args:
        seed: The secret.
        domain: Names and integers that say whose inputs they are.
        family: Which kind.
        num: K, how many.
        examples: Training inputs, an array `(n, ...)` or dict of such.
        model: For `"low_density"`: trained on the task, not marked; from inputs to one score a class.
        layer: For `"low_density"`: path of the layer whose activations are meant, as `named_layers` gives it.

    Returns:
        `(K, ...)` array, or dict of such, of the examples' shape and type.

    Raises:
        ValueError: If the family is unknown or does not suit the examples, or model and layer are missing or not asked for.

    Example:

    >>> images = np.zeros((10, 28, 28), "uint8"); images[:, 5, 5] = 255
    >>> noise = derive_inputs(b"seed", ("triggers",), "noise", 4, images)
    >>> noise.shape, noise.dtype, bool(noise.max() > 200)
    ((4, 28, 28), dtype('uint8'), True)

    Source: DeepSigns, section 3.3 (noise; points in rarely explored regions).
    """
    _check_choice("family", family, TriggerFamily)
    if (family == "low_density") != (model is not None) or (model is None) != (layer is None):
        raise ValueError(
            'Model and layer belong to one family of triggers. Expected both for family="low_density", neither for another. '
            f"Received: family={family!r}, model={'set' if model else 'missing'}, layer={layer!r}"
        )
    examples = as_inputs(examples, "examples")
    arrays = examples if isinstance(examples, Mapping) else {"": examples}
    if family == "noise":
        drawn = {name: _noise(seed, (*domain, name), num, array) for name, array in arrays.items()}
    elif family == "tokens":
        drawn = {name: _tokens(seed, (*domain, name), num, array) for name, array in arrays.items()}
    elif family == "blends":
        drawn = _blends(seed, domain, num, arrays)
    else:
        candidates = _blends(seed, domain, _CANDIDATES_PER_TRIGGER * num, arrays)
        as_given = candidates if isinstance(examples, Mapping) else candidates[""]
        order = np.argsort(_relative_gaps(model, layer, examples, as_given), kind="stable")
        order = _distinct(order, candidates)[:num]
        drawn = {name: array[order] for name, array in candidates.items()}
    return drawn if isinstance(examples, Mapping) else drawn[""]


def mix_triggers(dataset: Any, trigger_set: TriggerSet, num_triggers_per_batch: int, first_step: int = 0) -> Any:
    """Puts triggers into every batch of a `tf.data` pipeline, one after the other and round again.

    They stand in fixed, evenly spaced rows, so that each replica of a `tf.distribute` strategy gets its share: in a batch of
    B examples and T triggers, every (B + T) / T-th row is one. Give a `WatermarkedModel` the same number,
    `model.num_triggers_per_batch = T`, so that these rows carry no bits of a mark in its layers.

    Args:
        dataset: Yields batches `(inputs, labels)` of a fixed size B: inputs shaped as the triggers', labels as integers `(B,)` or
            `(B, 1)`, one-hot rows `(B, C)`, or a dict with one entry of these kinds.
        trigger_set: The triggers.
        num_triggers_per_batch: T, which divides B; at most K.
        first_step: Number of the first batch, for a training that goes on with the triggers where it stopped.

    Returns:
        A `tf.data.Dataset` of batches of B + T rows, with static shapes and as many batches.

    Raises:
        ValueError: If the batches have another structure or shape than the triggers, or no fixed size, or T does not divide it.

    Example:

    >>> import tensorflow as tf
    >>> triggers = TriggerSet(-np.ones((3, 2), "float32"), [0, 1, 1], num_classes=2, family="noise")
    >>> batches = tf.data.Dataset.from_tensors((np.zeros((4, 2), "float32"), np.zeros(4, "int64")))
    >>> for inputs, labels in mix_triggers(batches, triggers, num_triggers_per_batch=2):
    ...     print(inputs.numpy()[:, 0].tolist(), labels.numpy().tolist())
    [0.0, 0.0, -1.0, 0.0, 0.0, -1.0] [0, 0, 0, 0, 0, 1]

    Source: DeepSigns, section 3.3 (training data and triggers in one batch).
    """
    import tensorflow as tf

    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            "Triggers cannot be mixed into these batches. Expected pairs of inputs and labels. "
            f"Received: elements {spec}"
        )
    inputs = trigger_set.arrays if isinstance(trigger_set.inputs, Mapping) else trigger_set.inputs
    targets = tf.nest.flatten(spec[1])
    sizes = {each.shape[0] for each in tf.nest.flatten(spec)}
    given = tf.nest.map_structure(lambda each: tuple(each.shape[1:]), spec[0])
    fits = given == tf.nest.map_structure(lambda array: array.shape[1:], inputs) and all(
        np.array_equal(array.astype(each.dtype.as_numpy_dtype), array)
        or (array.dtype.kind == "f" and each.dtype.is_floating)
        for array, each in zip(tf.nest.flatten(inputs), tf.nest.flatten(spec[0]), strict=True)
    )
    if not fits or len(targets) != 1 or tuple(targets[0].shape[1:]) not in ((), (1,), (trigger_set.num_classes,)):
        shapes = {name: (array.shape[1:], str(array.dtype)) for name, array in trigger_set.arrays.items()}
        raise ValueError(
            "The triggers do not fit these batches. Expected inputs of the triggers' shape and type, and labels of "
            f"{trigger_set.num_classes} classes. Received: elements {spec}, triggers {shapes}"
        )
    size = sizes.pop()
    if (
        sizes
        or size is None
        or not 1 <= num_triggers_per_batch <= trigger_set.num_examples
        or size % num_triggers_per_batch
    ):
        raise ValueError(
            "Triggers cannot be spaced evenly in these batches. Expected batches of fixed size (`drop_remainder=True`), and a number of "
            f"triggers that divides it and does not exceed {trigger_set.num_examples}. "
            f"Received: batches of {size}, num_triggers_per_batch={num_triggers_per_batch}"
        )
    labels: Any = trigger_set.labels
    if targets[0].shape.rank == 2:
        labels = labels[:, None] if targets[0].shape[1] == 1 else np.eye(trigger_set.num_classes)[labels]
    pool = tf.nest.map_structure(
        lambda array, each: tf.constant(array, each.dtype), (inputs, tf.nest.pack_sequence_as(spec[1], [labels])), spec
    )

    def spaced(batch: Any, chosen: Any) -> Any:
        groups = tf.reshape(batch, (num_triggers_per_batch, size // num_triggers_per_batch, *batch.shape[1:]))
        mixed = tf.concat([groups, chosen[:, None]], axis=1)
        return tf.reshape(mixed, (size + num_triggers_per_batch, *batch.shape[1:]))

    def mix(step: Any, batch: Any) -> Any:
        first = step * num_triggers_per_batch
        rows = (first + tf.range(num_triggers_per_batch, dtype=step.dtype)) % trigger_set.num_examples
        return tf.nest.map_structure(lambda each, array: spaced(each, tf.gather(array, rows)), batch, pool)

    return dataset.enumerate(first_step).map(mix, num_parallel_calls=tf.data.AUTOTUNE)


def check_num_classes(num_classes: int) -> None:
    """Refuses a number of classes among which no label is a secret.

    Args:
        num_classes: C.

    Raises:
        ValueError: If it is no integer >= 2.

    Example:

    >>> check_num_classes(10)
    """
    check_number_of("num_classes", num_classes, 2, ", the classes that the model tells apart")


def _check_choice(name: str, value: Any, choices: Any) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected one of {list(allowed)}. Received: {name}={value!r}"
        )


def _range_of(family: TriggerFamily, array: np.ndarray) -> tuple[Any, Any]:
    """The smallest and the largest number, for tokens of those that are not 0, the padding's.

    Nothing else of the examples enters: of a vocabulary with gaps somebody could leave out what does not suit the labels.
    """
    numbers = array[array != 0] if family == "tokens" else array
    return numbers.min(), numbers.max()


def _noise(seed: bytes, domain: Domain, num: int, array: np.ndarray) -> np.ndarray:
    low, high = _range_of("noise", array)
    if array.dtype.kind != "f":
        return _integers_between(seed, domain, (num, *array.shape[1:]), int(low), int(high), array.dtype)
    shape = (num, *array.shape[1:])
    uniforms = derive_uniforms(seed, domain, int(np.prod(shape)))
    return np.asarray((low + (float(high) - float(low)) * uniforms).reshape(shape), array.dtype)


def _tokens(seed: bytes, domain: Domain, num: int, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iu" or (array < 0).any() or len(np.unique(array[array != 0])) < 2:
        raise ValueError(
            'These examples are no token strings. Expected integers >= 0, two of them at least other than 0, for family="tokens". '
            f"Received: dtype {array.dtype}, numbers from {array.min()} to {array.max()}"
        )
    low, high = _range_of("tokens", array)
    return _integers_between(seed, domain, (num, *array.shape[1:]), int(low), int(high), array.dtype)


def _integers_between(
    seed: bytes, domain: Domain, shape: tuple[int, ...], low: int, high: int, dtype: np.dtype[Any]
) -> np.ndarray:
    values = low + derive_integers(seed, domain, int(np.prod(shape)), high - low + 1)
    return np.asarray(values.reshape(shape), dtype)


def _blends(seed: bytes, domain: Domain, num: int, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    num_examples = len(next(iter(arrays.values())))
    if num_examples < 2:
        raise ValueError(f"There is nothing to blend. Expected at least two examples. Received: {num_examples}")
    one = derive_integers(seed, (*domain, "one"), num, num_examples)
    other = derive_integers(seed, (*domain, "other"), num, num_examples - 1)
    other += other >= one
    return {name: _mean(array[one], array[other]) for name, array in arrays.items()}


def _distinct(order: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The rows in this order, those first that no earlier one equals: of few examples, blends are drawn twice."""
    rows = np.concatenate([array[order].reshape(len(order), -1).view(np.uint8) for array in arrays.values()], axis=1)
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated = np.setdiff1d(np.arange(len(order)), first)
    return np.asarray(order[np.concatenate([np.sort(first), repeated])])


def _mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    if one.dtype.kind == "f":
        return np.asarray(0.5 * (one + other), one.dtype)
    # uint8 would overflow, and rounding down is the same on every machine.
    return np.asarray((one.astype(np.int64) + other.astype(np.int64)) // 2, one.dtype)


def _relative_gaps(model: Any, layer: Any, examples: Inputs, candidates: Inputs) -> np.ndarray:
    layers = named_layers(model)
    if layer not in layers:
        raise ValueError(f"This model has no such layer. Expected one of {list(layers)}. Received: layer={layer!r}")
    features, answers = _features(model, layers[layer], examples)
    means = np.stack([features[answers == label].mean(axis=0) for label in np.unique(answers)])
    if len(means) < 2:
        raise ValueError(
            "There is nothing between classes. Expected a trained model that sees at least two classes in the examples. "
            f"Received: {len(means)} class"
        )
    found, _ = _features(model, layers[layer], candidates)
    distances = scipy.spatial.distance.cdist(found, means)
    nearest, second = np.sort(distances, axis=1)[:, :2].T
    return np.asarray((second - nearest) / np.maximum(second, np.finfo(np.float64).tiny))


def _features(model: keras.Model, layer: keras.Layer, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    features, answers = [], []
    for _, outputs, answer in record_activations(model, inputs, {"layer": layer}):
        features.append(np.asarray(keras.ops.convert_to_numpy(pool(outputs["layer"][0], "mean")), np.float64))
        answers.append(np.asarray(keras.ops.convert_to_numpy(answer)).argmax(axis=-1))
    return np.concatenate(features), np.concatenate(answers)
