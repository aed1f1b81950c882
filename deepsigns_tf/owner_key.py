"""The owner's secret: a seed, the public parameters of the mark, key inputs and triggers, in one file.

Projection, signature, labels of triggers and the choice of key inputs are derived from the seed, never chosen, so nothing
can be fitted to a model afterwards. Source: DeepSigns, section 3 (owner's key = projection matrix, signature, key inputs).
"""

import dataclasses
import functools
import hashlib
import math
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from deepsigns_tf.activations import Inputs
from deepsigns_tf.arguments import check_number_of, is_text
from deepsigns_tf.canonical_json import encode_canonical
from deepsigns_tf.carriers import Carrier, CarrierLayer
from deepsigns_tf.derivation import derive_balanced_signs, derive_bits, derive_bytes, derive_choice, derive_normals
from deepsigns_tf.examples import Examples, as_inputs, as_labels
from deepsigns_tf.files import file_digest
from deepsigns_tf.key_files import inputs_taken_out, read_key_file, stored, stored_inputs, taken_out, write_key_file
from deepsigns_tf.statistics import DecisionRule, binomial_log10_tail
from deepsigns_tf.triggers import (
    LabelRule,
    TriggerFamily,
    TriggerSet,
    basis_of,
    check_num_classes,
    derive_inputs,
    derive_labels,
)

# Part of every derivation: a later scheme cannot produce this one's bits.
SCHEME_VERSION = 1

_NUM_SEED_BYTES = 32
_MIN_BITS = 64
# Before the names of their arrays in a key file.
_TRIGGER = "trigger "
_BASIS = "trigger basis "
_NUMBERS = "trigger numbers"


@dataclasses.dataclass(frozen=True, eq=False)
class KeyInputs(Examples):
    """The examples with which the mark is read; their labels are carrier classes.

    Example:

    >>> key_inputs = KeyInputs({"image": np.zeros((2, 28, 28)), "text": np.ones((2, 100), "int32")}, labels=[3, 7])
    >>> key_inputs.num_examples, sorted(key_inputs.arrays), len(key_inputs.digest())
    (2, ['image', 'text'], 64)
    """


@dataclasses.dataclass(frozen=True, eq=False)
class OwnerKey:
    """The secret bundle with which an owner embeds, extracts and proves a mark.

    Make one with `OwnerKey.generate`, give it key inputs or triggers before training, publish its `commitment()`.

    Args:
        owner: Who owns the model.
        carriers: The layers' roles, names unique; none for a mark in the answers alone.
        decision: When a reading counts as proof.
        seed: 32 secret bytes; never shown by `repr`, errors or configs.
        key_inputs: Examples to read the mark with, fixed before training.
        layers: Which layer of the released model plays which role; `release` fills it in.
        triggers: Inputs and the answers by which the model is recognized, fixed before training.
        reference: SHA-256 of the file of a model from before the mark, with whose units a suspect's may be matched.

    Raises:
        ValueError: If a part is missing, of another type, or contradicts another.

    Example:

    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)])
    >>> key.signature("features").shape, key.projection("features", 512).shape
    ((10, 64), (512, 64))
    """

    owner: str
    carriers: tuple[Carrier, ...]
    decision: DecisionRule
    seed: bytes = dataclasses.field(repr=False)
    key_inputs: KeyInputs | None = dataclasses.field(default=None, repr=False)
    layers: tuple[CarrierLayer, ...] = ()
    triggers: TriggerSet | None = dataclasses.field(default=None, repr=False)
    reference: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "carriers", _tuple_of(Carrier, self.carriers, "carriers"))
        object.__setattr__(self, "layers", _tuple_of(CarrierLayer, self.layers, "layers"))
        if not is_text(self.owner):
            raise ValueError(
                f"Invalid value for argument `owner`. Expected a non-empty text. Received: owner={self.owner!r}"
            )
        if not isinstance(self.decision, DecisionRule):
            raise ValueError(
                "Invalid value for argument `decision`. Expected a DecisionRule. "
                f"Received: a {type(self.decision).__name__}"
            )
        for name, value, kind in (("key_inputs", self.key_inputs, KeyInputs), ("triggers", self.triggers, TriggerSet)):
            if not isinstance(value, (kind, type(None))):
                raise ValueError(
                    f"Invalid value for argument `{name}`. Expected {kind.__name__} or None. "
                    f"Received: a {type(value).__name__}"
                )
        if self.reference is not None and not re.fullmatch("[0-9a-f]{64}", str(self.reference)):
            raise ValueError(
                "Invalid value for argument `reference`. Expected 64 hexadecimal digits, from `with_reference`, or None. "
                f"Received: reference={self.reference!r}"
            )
        names = [carrier.name for carrier in self.carriers]
        if len(set(names)) != len(names):
            raise ValueError(
                "Invalid value for argument `carriers`. Expected each carrier to have a name of its own. "
                f"Received: names={names}"
            )
        if not isinstance(self.seed, bytes) or len(self.seed) != _NUM_SEED_BYTES:
            raise ValueError(
                f"The seed of an owner key is malformed. Expected {_NUM_SEED_BYTES} bytes from the operating system. "
                "Received: something else, not shown here"
            )
        if self.layers and sorted(layer.carrier for layer in self.layers) != sorted(names):
            raise ValueError(
                "The layers do not fit the carriers. Expected one layer for each carrier. "
                f"Received: carriers={names}, layers for {[layer.carrier for layer in self.layers]}"
            )
        found = self.classes if self.key_inputs is None else self.key_inputs.labels.tolist()
        missing = sorted(set(self.classes) - set(found))
        if missing:
            raise ValueError(
                "The key inputs do not fit the carriers. Expected an example of each carrier class. "
                f"Received: none of the classes {missing}"
            )

    @classmethod
    def generate(
        cls, owner: str, carriers: Iterable[Carrier] = (), decision: DecisionRule = DecisionRule()
    ) -> "OwnerKey":
        """A new key with 32 bytes from the operating system's generator.

        Args:
            owner: Who owns the model.
            carriers: The layers' roles; none for a mark in the answers alone.
            decision: When a reading counts as proof; part of the commitment.

        Returns:
            The key, without key inputs and triggers yet. It warns where carriers hold less than 64 bits in all.

        Raises:
            ValueError: If an argument is out of range or of another type.

        Example:

        >>> carriers = [Carrier("early", range(10), 32), Carrier("late", [3, 5], 64)]
        >>> OwnerKey.generate("ACME Vision", carriers, DecisionRule("soft")).num_bits
        448
        """
        key = cls(owner, _tuple_of(Carrier, carriers, "carriers"), decision, secrets.token_bytes(_NUM_SEED_BYTES))
        if key.carriers and key.num_bits < _MIN_BITS:
            warnings.warn(
                f"This mark has {key.num_bits} bits in all; even a perfect match has p = 2^-{key.num_bits} "
                f"(10^-{key.num_bits * math.log10(2):.1f}). Use at least {_MIN_BITS}, better 256.",
                stacklevel=2,
            )
        return key

    @property
    def num_bits(self) -> int:
        """Bits over all carriers."""
        return sum(carrier.num_bits for carrier in self.carriers)

    @property
    def num_tests(self) -> int:
        """Tests that a claim may rest on: 2 for a key of weights and answers, whose owner may show either and pays for both; else 1."""
        return 2 if self.carriers and self.triggers is not None else 1

    @property
    def classes(self) -> list[int]:
        """The classes of all carriers, sorted, each once."""
        return sorted({label for carrier in self.carriers for label in carrier.classes})

    def carrier(self, name: str) -> Carrier:
        """The carrier of that name.

        Raises:
            ValueError: If there is none.
        """
        for carrier in self.carriers:
            if carrier.name == name:
                return carrier
        raise ValueError(
            f"This key has no such carrier. Expected one of {[carrier.name for carrier in self.carriers]}. "
            f"Received: carrier={name!r}"
        )

    def signature(self, carrier: str) -> np.ndarray:
        """The bits that a carrier's classes hold, a message of its own for each class.

        Args:
            carrier: Name of the carrier.

        Returns:
            `(s, N)` uint8 array of 0 and 1.

        Raises:
            ValueError: If the key has no such carrier.

        Example:

        >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)])
        >>> key.signature("features").shape, set(key.signature("features").ravel().tolist())
        ((10, 64), {0, 1})
        """
        c = self.carrier(carrier)
        domain = self._domain("signature", c, len(c.classes), c.bits_per_class)
        return derive_bits(self.seed, domain, c.num_bits).reshape(len(c.classes), c.bits_per_class)

    def projection(self, carrier: str, num_units: int) -> np.ndarray:
        """The matrix A that turns a class mean into logits.

        Args:
            carrier: Name of the carrier.
            num_units: M, features of the layer after pooling.

        Returns:
            `(M, N)` float32 array: zero-sum columns of -1 and +1, or standard normal entries, as the carrier says.

        Raises:
            ValueError: If the key has no such carrier or the layer is too narrow for its bits.

        Example:

        >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)])
        >>> projection = key.projection("features", 512)
        >>> projection.shape, float(np.abs(projection.sum(axis=0)).max())
        ((512, 64), 0.0)
        """
        c = self.carrier(carrier)
        c.check_num_units(num_units)
        domain = self._domain("projection", c, num_units, c.bits_per_class)
        if c.projection == "balanced":
            return derive_balanced_signs(self.seed, domain, num_units, c.bits_per_class).astype(np.float32)
        normals = derive_normals(self.seed, domain, num_units * c.bits_per_class)
        return normals.reshape(num_units, c.bits_per_class).astype(np.float32)

    def with_reference(self, path: str | os.PathLike[str]) -> "OwnerKey":
        """Lets suspects be read after their units were matched with those of a model from before the mark. Do this before marking.

        Projection and bits are derived from the file's hash too, from now on, which fixes its weights and its graph. So the reference
        cannot have been made to suit the bits, and a reading after the match has the same exact null as one without.

        Args:
            path: A `.keras` file of a model that was trained on the task and is not marked; the marked model begins with its weights.
                Keep it as it is: saved again, it is another file.

        Returns:
            A new key with other bits.

        Raises:
            ValueError: If the key has a reference already, or layers of a model that was marked.
            OSError: If the file cannot be read.

        Example:

        >>> import keras, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "reference.keras")
        >>> keras.Sequential([keras.Input((8,)), keras.layers.Dense(128, name="hidden"), keras.layers.Dense(2)]).save(path)
        >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 32)])
        >>> referred = key.with_reference(path)
        >>> bool((referred.signature("features") == key.signature("features")).all())
        False
        """
        if self.reference is not None or self.layers:
            raise ValueError(
                "This key cannot take a reference any more. Expected one before marking, once. "
                f"Received: a key with {'a reference' if self.reference else 'the layers of a marked model'}"
            )
        return dataclasses.replace(self, reference=file_digest(path))

    def with_key_inputs(self, x: Inputs, carrier_labels: np.ndarray, num_per_class: int = 64) -> "OwnerKey":
        """Lets the seed pick the examples with which the mark will be read. Do this before training.

        Key inputs chosen afterwards are a free parameter with which any model can be made to match; that is why they
        can be set once only and stand in the commitment.

        Args:
            x: Training examples: images, token sequences, any array `(n, ...)`, or a dict of such arrays.
            carrier_labels: `(n,)` integer labels, -1 for rows to ignore.
            num_per_class: Key inputs of each carrier class.

        Returns:
            A new key that holds the key inputs.

        Raises:
            ValueError: If the key has key inputs already, an array is not finite, or a class has too few examples.

        Example:

        >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 64)])
        >>> x, y = np.random.rand(100, 8), np.arange(100) % 2
        >>> key.with_key_inputs(x, y, num_per_class=16).key_inputs.num_examples
        32
        """
        if self.key_inputs is not None:
            raise ValueError(
                "This key has its key inputs already. Expected to choose them once, before training; generate a new key to "
                f"choose others. Received: a key with {self.key_inputs.num_examples} key inputs"
            )
        check_number_of("num_per_class", num_per_class)
        inputs = as_inputs(x, "x")
        arrays = inputs if isinstance(inputs, Mapping) else {"": inputs}
        labels = as_labels(carrier_labels, len(next(iter(arrays.values()))), "carrier_labels")
        chosen = []
        for label in self.classes:
            rows = np.flatnonzero(labels == label)
            if len(rows) < num_per_class:
                raise ValueError(
                    f"Class {label} has too few examples to choose key inputs from. Expected at least "
                    f"num_per_class={num_per_class}. Received: {len(rows)}"
                )
            domain = ("key inputs", self.owner, SCHEME_VERSION, label, len(rows), num_per_class)
            chosen.append(rows[derive_choice(self.seed, domain, len(rows), num_per_class)])
        order = np.concatenate(chosen)
        picked = {name: array[order] for name, array in arrays.items()}
        key_inputs = KeyInputs(picked if isinstance(inputs, Mapping) else picked[""], labels[order])
        return dataclasses.replace(self, key_inputs=key_inputs)

    def with_triggers(
        self,
        family: TriggerFamily,
        num_triggers: int,
        num_classes: int,
        examples: Inputs,
        *,
        label_rule: LabelRule = "uniform",
        model: Any = None,
        layer: str | None = None,
    ) -> "OwnerKey":
        """Lets the seed make the inputs and labels by which a model will be recognized from its answers. Do this before training.

        The labels depend on the seed and these numbers alone. So do the inputs, but for those of low density, which are made from a
        model that was trained on the task: commit to the key before training goes on with them.

        Args:
            family: `"noise"`, `"blends"`, `"low_density"` or `"tokens"`; see `triggers.derive_inputs`.
            num_triggers: K, at least 1. A hundred of ten classes leave room for 72 wrong answers at 10^-6.
            num_classes: C, classes that the model tells apart, >= 2.
            examples: Training inputs, whose shape, type and range the triggers take.
            label_rule: `"uniform"`, or `"shuffled"` for as many labels of each class.
            model: The task-trained model, for `"low_density"`.
            layer: Path of its layer between whose class means the triggers shall lie, for `"low_density"`.

        Returns:
            A new key that holds the triggers.

        Raises:
            ValueError: If the key has triggers already, or a value is out of range.

        Example:

        >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 100, num_classes=10, examples=np.random.rand(50, 8))
        >>> key.triggers.inputs.shape, key.triggers.labels.shape
        ((100, 8), (100,))

        Source: DeepSigns, section 3.3.
        """
        if self.triggers is not None:
            raise ValueError(
                "This key has its triggers already. Expected to make them once, before training; generate a new key to make others. "
                f"Received: a key with {self.triggers.num_examples} triggers"
            )
        check_number_of("num_triggers", num_triggers)
        check_num_classes(num_classes)
        labels = self._trigger_labels(int(num_triggers), int(num_classes), label_rule)
        inputs = self._trigger_inputs(int(num_triggers), family, examples, model, layer)
        triggers = TriggerSet(inputs, labels, num_classes, family, label_rule, basis=basis_of(family, examples))
        return self._triggered(triggers)

    def _triggered(self, triggers: TriggerSet) -> "OwnerKey":
        """The key with these triggers; it warns where they are too few, or equal each other."""
        assert triggers.num_drawn is not None
        log10_alpha = self.decision.log10_alpha(committed=True)
        if triggers.allowed_errors(log10_alpha) is None:
            log10_p = binomial_log10_tail(triggers.num_examples, triggers.num_drawn, triggers.num_classes)
            warnings.warn(
                f"These triggers prove nothing: {triggers.num_examples} right answers of {triggers.num_classes} classes have p = "
                f"10^{log10_p:.1f}, above the level 10^{log10_alpha:.1f}. Use more of them.",
                stacklevel=3,
            )
        if triggers.num_contradicted:
            warnings.warn(
                f"No model can learn all of these triggers: {triggers.num_contradicted} of {triggers.num_examples} have the input of "
                "another one, but not its label. Use examples that differ more, or fewer triggers.",
                stacklevel=3,
            )
        return dataclasses.replace(self, triggers=triggers)

    @functools.cached_property
    def derived_triggers(self) -> TriggerSet:
        """The triggers, once it was checked that the seed gives their labels, and their inputs where it alone does.

        Raises:
            ValueError: If the key has no triggers, or others than its seed gives: labels that somebody chose to suit what models answer.
        """
        found = self.triggers
        if found is None:
            raise ValueError(
                "This key cannot recognize a model by its answers. Expected a key with triggers, made by `with_triggers` before training. "
                "Received: a key without triggers"
            )
        assert found.num_drawn is not None
        labels = self._trigger_labels(found.num_drawn, found.num_classes, found.label_rule)[found.numbers]
        wrong = [] if np.array_equal(labels, found.labels) else ["labels"]
        if found.inputs_derived:
            inputs: Inputs = {}
            # A basis of larger inputs than the triggers' could ask for any amount of numbers.
            if found.basis is not None and _shapes_of_rows(found.basis) == _shapes_of_rows(found.inputs):
                inputs = self._trigger_inputs(found.num_drawn, found.family, found.basis)
            derived = inputs if isinstance(inputs, Mapping) else {"": inputs}
            if derived.keys() != found.arrays.keys() or not all(
                np.array_equal(each[found.numbers], found.arrays[name]) for name, each in derived.items()
            ):
                wrong.append("inputs")
        if wrong:
            raise ValueError(
                "These triggers are not this key's. Expected labels that follow from its seed, and inputs too for noise and tokens. "
                f"Received: other {' and '.join(wrong)}"
            )
        return found

    def _trigger_labels(self, num: int, num_classes: int, label_rule: LabelRule) -> np.ndarray:
        domain = ("trigger labels", self.owner, SCHEME_VERSION, num, num_classes)
        return derive_labels(self.seed, domain, num, num_classes, label_rule)

    def _trigger_inputs(
        self, num: int, family: TriggerFamily, examples: Inputs, model: Any = None, layer: str | None = None
    ) -> Inputs:
        domain = ("trigger inputs", self.owner, SCHEME_VERSION, num, family)
        return derive_inputs(self.seed, domain, family, num, examples, model, layer)

    def with_selected_triggers(self, answers: np.ndarray) -> "OwnerKey":
        """Keeps the triggers that an unmarked model gets wrong, as the paper does. Do this before training.

        Nothing asks for it: all triggers together have an exact test, and those that are left are held against all that were drawn.

        Args:
            answers: `(K,)` class numbers, the unmarked model's for all triggers.

        Returns:
            A new key with fewer triggers; it warns where they are too few.

        Raises:
            ValueError: If the key has no triggers, or no exact test exists for those that were selected; see `TriggerSet.selected`.
        """
        if self.triggers is None:
            raise ValueError(
                "This key has no triggers to select from. Expected triggers, made by `with_triggers`. Received: a key without triggers"
            )
        return self._triggered(self.triggers.selected(answers))

    def with_layers(self, layers: Iterable[CarrierLayer]) -> "OwnerKey":
        """The same key, with the layers that play its carriers' roles. `release` calls this.

        Args:
            layers: One layer for each carrier.

        Returns:
            A new key with the same commitment.

        Raises:
            ValueError: If a carrier has no layer or several.
        """
        return dataclasses.replace(self, layers=tuple(layers))

    def commitment(self) -> str:
        """A hash to publish or time-stamp before training; it reveals nothing and cannot be met by another key.

        It covers the seed, owner, scheme version, carriers, decision rule, the digest of the key inputs, and the triggers: family,
        number, labels, inputs. The layers that `release` adds are not covered, so it stays the same; until they are
        committed too (`commitments.release_commitment`) they count as searched.

        Returns:
            64 hexadecimal digits, SHA-256.

        Raises:
            ValueError: If the key has carriers but no key inputs yet, or nothing to prove a mark with.

        Example:

        >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 64)])
        >>> key = key.with_key_inputs(np.random.rand(100, 8), np.arange(100) % 2, num_per_class=16)
        >>> commitment = key.commitment()  # publish it, then train
        >>> len(commitment), key.with_layers([CarrierLayer("features", "hidden", 512)]).commitment() == commitment
        (64, True)
        """
        if self.key_inputs is None and (self.carriers or self.triggers is None):
            raise ValueError(
                "This key cannot be committed to yet. Expected key inputs, set by `with_key_inputs` before training, or triggers and no "
                "carriers. Received: a key without key inputs"
            )
        statement = self._public_parameters()
        if self.key_inputs is not None:
            statement["key_inputs"] = self.key_inputs.digest()
        if self.triggers is not None:
            statement["triggers"] = self.triggers.parameters() | {"digest": self.triggers.digest()}
        canonical = encode_canonical(statement).decode()
        return hashlib.sha256(derive_bytes(self.seed, ("commitment", SCHEME_VERSION, canonical), 32)).hexdigest()

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 public hexadecimal digits by which a checkpoint knows its key again."""
        return derive_bytes(self.seed, ("fingerprint", self.owner, SCHEME_VERSION, *self._referred), 16).hex()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the key to one file that only its owner may read (mode 0600).

        Args:
            path: Where to; an existing file is replaced as a whole.

        Raises:
            ValueError: If it holds more than 2 GiB.
            OSError: If the folder cannot be written.

        Example:

        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "owner.key")
        >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)])
        >>> key.save(path)
        >>> OwnerKey.load(path).fingerprint == key.fingerprint
        True
        """
        header = self._public_parameters() | {"layers": [dataclasses.asdict(layer) for layer in self.layers]}
        arrays = {"seed": np.frombuffer(self.seed, np.uint8), **stored(self.key_inputs, "")}
        if self.triggers is not None:
            header["triggers"] = self.triggers.parameters()
            arrays |= stored(self.triggers, _TRIGGER) | stored_inputs(self.triggers.basis, _BASIS)
            arrays[_NUMBERS] = np.asarray(self.triggers.numbers)
        write_key_file(path, header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "OwnerKey":
        """Reads a key that `save` wrote. Nothing in the file is executed.

        Args:
            path: The file.

        Returns:
            The key.

        Raises:
            ValueError: If the file is foreign, truncated, altered, of a newer version, or holds more than 2 GiB.
            OSError: If it cannot be opened.

        Example:

        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "owner.key")
        >>> OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)]).save(path)
        >>> OwnerKey.load(path).owner
        'ACME Vision'
        """

        def revive(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> OwnerKey:
            seed = arrays.pop("seed").tobytes()
            triggers, key_inputs = taken_out(arrays, _TRIGGER), taken_out(arrays, "")
            basis, numbers = inputs_taken_out(arrays, _BASIS), arrays.pop(_NUMBERS, None)
            if header["scheme_version"] != SCHEME_VERSION or (triggers is None) != ("triggers" not in header):
                raise ValueError("another scheme, or triggers without parameters")
            if arrays:
                raise ValueError("unknown arrays")
            return cls(
                owner=header["owner"],
                carriers=tuple(Carrier(**carrier) for carrier in header["carriers"]),
                decision=DecisionRule(**header["decision"]),
                seed=seed,
                key_inputs=key_inputs and KeyInputs(*key_inputs),
                layers=tuple(CarrierLayer(**layer) for layer in header["layers"]),
                reference=header.get("reference"),
                triggers=triggers and TriggerSet(*triggers, **header["triggers"], numbers=numbers, basis=basis),
            )

        return read_key_file(path, revive)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "An owner key cannot be pickled. Expected `OwnerKey.save`, the one place that a seed is written to. "
            "Received: a request to pickle"
        )

    def __copy__(self) -> "OwnerKey":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "OwnerKey":
        return self

    def _public_parameters(self) -> dict[str, Any]:
        return {
            "scheme_version": SCHEME_VERSION,
            "owner": self.owner,
            "carriers": [carrier.to_dict() for carrier in self.carriers],
            "decision": self.decision.to_dict(),
        } | ({} if self.reference is None else {"reference": self.reference})

    def _domain(self, purpose: str, carrier: Carrier, *sizes: int) -> tuple[str | int, ...]:
        return (purpose, self.owner, SCHEME_VERSION, carrier.name, *sizes, *self._referred)

    @property
    def _referred(self) -> tuple[str, ...]:
        """What the reference, if there is one, adds to a domain."""
        return () if self.reference is None else (self.reference,)


def _tuple_of(kind: type, values: Any, argument: str) -> tuple[Any, ...]:
    items = tuple(values) if isinstance(values, Iterable) else None
    if items is None or any(not isinstance(item, kind) for item in items):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected a sequence of {kind.__name__}. "
            f"Received: {f'a {type(values).__name__}' if items is None else [type(item).__name__ for item in items]}"
        )
    return items


def _shapes_of_rows(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    arrays = inputs if isinstance(inputs, Mapping) else {"": inputs}
    return {name: array.shape[1:] for name, array in arrays.items()}
