"""Claimants who did not mark a model, each for real, and what becomes of them; and the owner, who is believed every time.

    python -m benchmarks.false_claims         # results/false_claims.json

A claim is accepted if the mark is there at the level of committed claims, signed statements commit to the key, and an authority that the
judge trusts dated them before the model was published; of several such claims the earliest wins. The first column of the table says
how far each claimant gets where nobody defends: log10 p of what they show, with what they brought. The authority is `openssl ts`.
"""

import dataclasses
import datetime
import hashlib
import itertools
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from scripts.configs import command_line, option, run_program

# Fixed before the first run.
SEED = b"deepsigns_tf false claims of 2026-11-26"


@dataclasses.dataclass(frozen=True)
class Config:
    """How hard the claimants try."""

    dataset: str = option("mnist", "What is trained on.", choices=("mnist", "mnist5k", "synthetic"))
    epochs: int = option(20, "Passes over the training set, of owner and thief.", minimum=1)
    num_seeds: int = option(20_000_000, "Seeds that are tried at most until one is convincing.", minimum=2)
    num_committed: int = option(200, "Seeds that are committed to beforehand, each in a signed statement.", minimum=2)
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    results_dir: str = option("results", "Folder for the result.", shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Lets every claimant try.

    Args:
        config: How hard.

    Returns:
        What `results/false_claims.json` holds.
    """
    from scripts.records import circumstances, result_file, write_json

    path = result_file(config.results_dir, "false_claims")
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(config, pathlib.Path(folder))
        rows = []
        for claimant in CLAIMANTS:
            claim = claimant(scene)
            ruled = scene.ruling(claim)
            owner = scene.ruling(dataclasses.replace(scene.owners_claim, model=claim.model))
            accepted = ruled.accepted and not (owner.accepted and owner.dated < ruled.dated)
            rows.append(
                {
                    "claimant": (claimant.__doc__ or "").strip().rstrip("."),
                    "log10_p_undefended": claim.undefended,
                    "accepted": accepted,
                    "reason": claim.refused or ruled.reason or "an earlier claim is valid too",
                    # Nobody but a claimant of a model that the owner never marked has no owner beside them.
                    "owner_accepted": owner.accepted if claim.owners_model else None,
                }
            )
            print(rows[-1], flush=True)
        data = scene.task.data.name
    result = {**circumstances(command_line("benchmarks.false_claims", config)), "data": data, "rows": rows}
    write_json(path, result)
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Claim:
    """What a claimant shows.

    Args:
        model: The one that is claimed.
        owner_key: The key.
        evidence: Folder of statements; None without.
        undefended: log10 p of what is shown, where nobody looks further.
        refused: Why it cannot even be shown, if it cannot.
        owners_model: Whether the owner marked the model.
        reference: The file that the key refers to, if the model is to be matched with it.
    """

    model: Any
    owner_key: Any
    evidence: pathlib.Path | None
    undefended: float
    refused: str | None = None
    owners_model: bool = True
    reference: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Ruling:
    """What a judge says of a claim by itself.

    Args:
        accepted: Whether it is proved and dated before the model was published.
        reason: Why not; empty if it is.
        dated: When the key was committed to.
    """

    accepted: bool
    reason: str
    dated: datetime.datetime = datetime.datetime.max.replace(tzinfo=datetime.UTC)


class Scene:
    """An owner who marks and publishes a model by the book, an authority, and a judge.

    Args:
        config: As above.
        folder: For statements.
    """

    def __init__(self, config: Config, folder: pathlib.Path) -> None:
        import deepsigns_tf as ds
        from benchmarks.authorities import TIME_STAMPING, certified
        from deepsigns_tf.signatures import SigningKey
        from deepsigns_tf.weights_digest import weights_digest
        from scripts import train_mnist_mlp as program

        self.config, self._folder, self._numbers = config, folder, itertools.count()
        self.settings = program.Config("", dataset=config.dataset, data_dir=config.data_dir, epochs=config.epochs)
        self.task = program.task(self.settings)
        self.root = certified("Root of trust")
        self._authority = certified("Authority of time", self.root, purposes=TIME_STAMPING)
        signing_key, key = SigningKey.generate(), self.key("owner", b"owner")
        statements = self.stated(signing_key, key)
        self.unmarked = self.trained()
        self.marked, key = ds.release(self.trained(key), key)
        self.stated(signing_key, key, statements, "1.0", weights_digest(self.marked))
        self.owners_claim = Claim(self.marked, key, statements, 0.0)
        # Of claimants who foresee the model: later than the owner, and before it is published. Time-stamps go by whole seconds.
        time.sleep(2)
        self.early_signing_key = SigningKey.generate()
        self.early = {name: self._all_stated(keys) for name, keys in self._early_keys().items()}
        time.sleep(2)
        self.published = datetime.datetime.now(datetime.UTC)
        time.sleep(2)
        self.thiefs_signing_key = SigningKey.generate()

    def key(self, owner: str, name: bytes, with_key_inputs: bool = True) -> Any:
        """A key whose seed follows from a name."""
        import deepsigns_tf as ds

        carriers = (ds.Carrier("features", range(10), 64),)
        key = ds.OwnerKey(owner, carriers, ds.DecisionRule(), hashlib.sha256(SEED + name).digest())
        return key.with_key_inputs(self.task.data.x_train, self.task.data.y_train) if with_key_inputs else key

    def early_names(self) -> list[bytes]:
        """Of the seeds of whoever commits to many."""
        return [b"early %d" % number for number in range(self.config.num_committed)]

    def _early_keys(self) -> dict[str, list[Any]]:
        """Claimant -> keys that are committed to before the model is published."""
        return {
            "insider": [self.key("insider", b"insider")],
            "many_commitments": [self.key("thief", name) for name in self.early_names()],
            "late_map": [_key_without_map(self)],
            "picked_triggers": [_key_with_picked_triggers(self)],
        }

    def _all_stated(self, keys: list[Any]) -> pathlib.Path:
        folder = self.folder()
        for key in keys:
            self.stated(self.early_signing_key, key, folder)
        return folder

    def trained(self, key: Any = None, start: Any = None) -> Any:
        """A network of the task, marked if there is a key, from another's weights if there is one."""
        import keras

        from scripts.fitting import batches_of, compile_classifier, cosine_schedule, fresh_start
        from scripts.marking import marked_model

        settings = self.settings
        with fresh_start(settings):
            model = self.task.build() if key is None else marked_model(settings, self.task, key)
        if start is not None:
            model.set_weights(start.get_weights())
        schedule = cosine_schedule(settings, self.task.data, settings.epochs, settings.learning_rate)
        compile_classifier(model, schedule, settings)
        batches, steps_per_epoch = batches_of(settings, self.task.data, range(settings.epochs))()
        model.fit(batches, epochs=settings.epochs, steps_per_epoch=steps_per_epoch, shuffle=False, verbose=0)
        assert isinstance(model, keras.Model)
        return model

    def stated(
        self,
        signing_key: Any,
        key: Any,
        folder: pathlib.Path | None = None,
        release_id: str | None = None,
        weights: str | None = None,
        *,
        dated: bool = True,
    ) -> pathlib.Path:
        """A folder in which a key is committed to, or a release stated, and the authority's time-stamp for it."""
        from benchmarks.authorities import time_stamp
        from deepsigns_tf.evidence import add_statement, add_time_stamp, statement_file
        from deepsigns_tf.timestamps import time_stamp_request

        folder = folder or self.folder()
        statement = add_statement(folder, signing_key, key, release_id, weights)
        if dated:
            request = time_stamp_request(statement_file(folder, statement.number).read_bytes())
            add_time_stamp(folder, statement.number, time_stamp(request, self._authority, self.folder()))
        return folder

    def folder(self) -> pathlib.Path:
        """A new one."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    def means(self, model: Any, key: Any) -> np.ndarray:
        """`(s, M)` class means of the key inputs in the marked layer, as anybody computes them."""
        import keras

        features = keras.Model(model.inputs, model.get_layer("features").output)
        found = features.predict(key.key_inputs.inputs, batch_size=1000, verbose=0).astype(np.float64)
        labels = key.key_inputs.labels
        return np.stack([found[labels == label].mean(axis=0) for label in range(10)])

    def released_layers(self, key: Any) -> Any:
        """The key, with the layers that the owner's has."""
        return key.with_layers(self.owners_claim.owner_key.layers)

    def ruling(self, claim: Claim) -> Ruling:
        """What the judge says."""
        import deepsigns_tf as ds
        from deepsigns_tf.evidence import load_evidence

        if claim.refused:
            return Ruling(False, claim.refused)
        try:
            evidence = None if claim.evidence is None else load_evidence(claim.evidence, self.root.pem, self.published)
            by_answers = not claim.owner_key.carriers
            verdict = (
                ds.verify_predict_fn(
                    lambda inputs: claim.model.predict(inputs, verbose=0), claim.owner_key, evidence=evidence
                )
                if by_answers
                else ds.verify(claim.model, claim.owner_key, evidence=evidence, reference=claim.reference)
            )
        except ValueError as error:
            return Ruling(False, f"refused: {str(error).rpartition('Received: ')[2]}")
        if not verdict.marked:
            return Ruling(False, f"p = 10^{verdict.log10_p_value:.1f}, above 10^{verdict.log10_alpha:.1f}")
        stamp = verdict.opened and verdict.opened.time_stamp
        if stamp is None:
            return Ruling(False, "no earlier commitment was shown, or one without a date")
        if not verdict.committed:
            return Ruling(False, "committed to after the model was published", stamp.time)
        return Ruling(True, "", stamp.time)


def fitted_key_inputs(scene: Scene) -> Claim:
    """Key inputs perturbed until a new key reads its bits in a stolen model."""
    key, log10_p = _fitted(scene)
    return Claim(scene.marked, key, scene.stated(scene.thiefs_signing_key, key), log10_p)


def picked_key_inputs(scene: Scene) -> Claim:
    """Key inputs picked among the training images to suit a new key."""
    import deepsigns_tf as ds
    from deepsigns_tf.owner_key import KeyInputs

    key = scene.released_layers(scene.key("thief", b"picked"))
    data, model = scene.task.data, _features(scene.marked)
    signs, projection = 2.0 * key.signature("features") - 1.0, key.projection("features", 512)
    chosen = []
    for label in range(10):
        rows = np.flatnonzero(data.y_train == label)
        votes = (model.predict(data.x_train[rows], batch_size=1000, verbose=0) @ projection) * signs[label]
        weights = np.ones(votes.shape[1])
        for _ in range(20):
            best = np.argsort(-(votes @ weights))[:64]
            # Bits that are still wrong count more.
            weights = np.where(votes[best].mean(axis=0) > 0, weights, weights * 1.3)
        chosen.append(rows[best])
    order = np.concatenate(chosen)
    picked = dataclasses.replace(key, key_inputs=KeyInputs(data.x_train[order], data.y_train[order]))
    evidence = scene.stated(scene.thiefs_signing_key, picked)
    return Claim(scene.marked, picked, evidence, ds.verify(scene.marked, picked).log10_p_value)


def chosen_signature(scene: Scene) -> Claim:
    """A signature chosen to be what a projection reads in a stolen model."""
    key = scene.released_layers(scene.key("thief", b"chosen"))
    bits = (scene.means(scene.marked, key) @ key.projection("features", 512) > 0).astype(np.uint8)
    return _brought(scene, key, "signature", bits)


def flipped_signs(scene: Scene) -> Claim:
    """A projection whose columns' signs were flipped until a stolen model spells a chosen signature."""
    import deepsigns_tf as ds

    key = dataclasses.replace(scene.key("thief", b"flipped"), carriers=(ds.Carrier("features", [0], 128),))
    key = scene.released_layers(key)
    projection, signs = key.projection("features", 512), 2.0 * key.signature("features") - 1.0
    read = scene.means(scene.marked, key)[:1] @ projection
    return _brought(scene, key, "projection", projection * np.where(read * signs < 0, -1, 1).astype(np.float32))


def ground_seeds(scene: Scene) -> Claim:
    """Seeds ground after the theft until all of six triggers have the label that the model gives to most noise."""
    import deepsigns_tf as ds
    from deepsigns_tf.derivation import derive_bytes
    from deepsigns_tf.owner_key import SCHEME_VERSION
    from deepsigns_tf.triggers import derive_labels

    def answers(inputs: Any) -> np.ndarray:
        return np.asarray(scene.marked.predict(inputs, verbose=0).argmax(axis=1))

    def claimed(number: int) -> tuple[float, Any]:
        key = ds.OwnerKey("thief", (), ds.DecisionRule(), seed_of(number))
        key = key.with_triggers("noise", 6, 10, scene.task.data.x_train)
        return ds.verify_predict_fn(answers, key).log10_p_value, key

    def seed_of(number: int) -> bytes:
        return derive_bytes(SEED, ("ground", number), 32)

    noise = _noise_key(scene, b"probe", 1000).triggers.inputs
    usual = np.bincount(answers(noise), minlength=10).argmax()
    log10_p, key = claimed(0)
    for number in range(scene.config.num_seeds):
        # Labels first: they are derived a thousand times as fast as inputs are.
        if (
            derive_labels(seed_of(number), ("trigger labels", "thief", SCHEME_VERSION, 6, 10), 6, 10, "uniform")
            == usual
        ).all():
            log10_p, key = min((log10_p, key), claimed(number), key=lambda each: each[0])
            if log10_p <= -6:
                break
    return Claim(scene.marked, key, scene.stated(scene.thiefs_signing_key, key), log10_p)


def many_commitments(scene: Scene) -> Claim:
    """Many seeds committed to before the model was published, the luckiest opened."""
    best, log10_p = _luckiest(scene, scene.early_names())
    return Claim(scene.marked, best, scene.early["many_commitments"], log10_p)


def picked_triggers(scene: Scene) -> Claim:
    """Of 2,000 triggers those kept, before the model was published, whose label models give to most noise."""
    import deepsigns_tf as ds
    from deepsigns_tf.statistics import binomial_log10_tail

    key = _key_with_picked_triggers(scene)
    verdict = ds.verify_predict_fn(lambda inputs: scene.marked.predict(inputs, verbose=0), key)
    # As if the owner of the model that selects had not known the labels.
    log10_p = binomial_log10_tail(verdict.num_matches, verdict.num_asked, 9)
    return Claim(scene.marked, key, scene.early["picked_triggers"], log10_p)


def late_map(scene: Scene) -> Claim:
    """A key committed to in time, and a map stated afterwards: in a deep network of somebody else's, the best of its layers."""
    import keras

    from deepsigns_tf.candidates import best_readings, candidate_means
    from deepsigns_tf.carriers import CarrierLayer
    from deepsigns_tf.verification import judge
    from deepsigns_tf.weights_digest import weights_digest

    keras.utils.set_random_seed(0)
    outputs = inputs = keras.Input((784,))
    for number in range(100):
        outputs = keras.layers.Dense(64, None if number % 4 else "relu", name=f"layer_{number}")(outputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(outputs))
    key = _key_without_map(scene)
    key = key.with_layers([CarrierLayer(carrier.name, "layer_0", 64) for carrier in key.carriers])
    best = best_readings(candidate_means(model, key), key)
    key = key.with_layers([CarrierLayer(reading.carrier, reading.layer, 64) for reading in best])
    folder = scene.folder()
    shutil.copytree(scene.early["late_map"], folder, dirs_exist_ok=True)
    evidence = scene.stated(scene.early_signing_key, key, folder, "1.0", weights_digest(model))
    # As a map is read that was stated in time: there alone.
    log10_p = judge(best, key, num_assignments=1).log10_p_value
    return Claim(model, key, evidence, log10_p, owners_model=False)


def shopped_layers(scene: Scene) -> Claim:
    """One key, and the layer, classes and bits that suit it best in a model that nobody marked."""
    import deepsigns_tf as ds
    from deepsigns_tf.carriers import CarrierLayer

    found = []
    for layer, num_classes, bits in itertools.product(("hidden", "features"), range(1, 11), (8, 16, 32, 64, 128)):
        carrier = ds.Carrier("features", range(num_classes), bits)
        key = dataclasses.replace(scene.key("thief", b"shopped"), carriers=(carrier,), key_inputs=None)
        key = key.with_key_inputs(scene.task.data.x_train, scene.task.data.y_train)
        key = key.with_layers([CarrierLayer("features", layer, 512)])
        found.append((ds.verify(scene.unmarked, key).log10_p_hard, layer, key))
    log10_p, _, key = min(found, key=lambda each: each[0])
    evidence = scene.stated(scene.thiefs_signing_key, key)
    return Claim(scene.unmarked, key, evidence, log10_p, owners_model=False)


def own_reference(scene: Scene) -> Claim:
    """References tried until one aligns a stolen model's units with a new key's bits."""
    import deepsigns_tf as ds
    from deepsigns_tf.attacks.same_function import permute_units

    found = []
    for number in range(20):
        reference = scene.folder() / "reference.keras"
        permute_units(scene.unmarked, seed=number).save(reference)
        key = scene.released_layers(scene.key("thief", b"reference").with_reference(reference))
        found.append((ds.verify(scene.marked, key, reference=reference).log10_p_value, number, key, reference))
    log10_p, _, key, reference = min(found, key=lambda each: each[:2])
    evidence = scene.stated(scene.thiefs_signing_key, key)
    return Claim(scene.marked, key, evidence, log10_p, reference=reference)


def overwritten(scene: Scene) -> Claim:
    """A stolen model marked again with a thief's own key, committed to before that."""
    import deepsigns_tf as ds

    key = scene.key("thief", b"overwritten")
    evidence = scene.stated(scene.thiefs_signing_key, key)
    model, key = ds.release(scene.trained(key, scene.marked), key)
    return Claim(model, key, evidence, ds.verify(model, key).log10_p_value)


def replayed_key(scene: Scene) -> Claim:
    """The owner's key file, as opened to a judge, under another name."""
    import deepsigns_tf as ds

    key = dataclasses.replace(scene.owners_claim.owner_key, owner="thief")
    evidence = scene.stated(scene.thiefs_signing_key, key)
    return Claim(scene.marked, key, evidence, ds.verify(scene.marked, key).log10_p_value)


def replayed_evidence(scene: Scene) -> Claim:
    """The owner's opened key and statements, signed again by the thief."""
    import deepsigns_tf as ds

    evidence = scene.stated(scene.thiefs_signing_key, scene.owners_claim.owner_key)
    return Claim(
        scene.marked,
        scene.owners_claim.owner_key,
        evidence,
        ds.verify(scene.marked, scene.owners_claim.owner_key).log10_p_value,
    )


def without_date(scene: Scene) -> Claim:
    """A key fitted to a stolen model, in statements without any time-stamp."""
    key, log10_p = _fitted(scene)
    return Claim(scene.marked, key, scene.stated(scene.thiefs_signing_key, key, dated=False), log10_p)


def altered_time_stamp(scene: Scene) -> Claim:
    """A key fitted to a stolen model, with a time-stamp that was altered to an earlier day."""
    key, log10_p = _fitted(scene)
    evidence = scene.stated(scene.thiefs_signing_key, key, scene.folder())
    path, today = evidence / "0001.tsr", datetime.datetime.now(datetime.UTC)
    days = [(today - datetime.timedelta(days=days)).strftime("%Y%m%d").encode() for days in (0, 5)]
    path.write_bytes(path.read_bytes().replace(*days))
    return Claim(scene.marked, key, evidence, log10_p)


def foreign_time_stamp(scene: Scene) -> Claim:
    """A key fitted to a stolen model, dated by an authority of the thief's own."""
    from benchmarks.authorities import TIME_STAMPING, certified, time_stamp
    from deepsigns_tf.timestamps import time_stamp_request

    key, log10_p = _fitted(scene)
    evidence = scene.stated(scene.thiefs_signing_key, key, dated=False)
    signer = certified("Authority of time", certified("Root of trust"), purposes=TIME_STAMPING)
    request = time_stamp_request((evidence / "0001.json").read_bytes())
    (evidence / "0001.tsr").write_bytes(time_stamp(request, signer, scene.folder()))
    return Claim(scene.marked, key, evidence, log10_p)


def insider(scene: Scene) -> Claim:
    """Somebody who marked the model too, with a key committed to before it was published, after the owner's."""
    import deepsigns_tf as ds

    key = scene.key("insider", b"insider")
    model, key = ds.release(scene.trained(key, scene.marked), key)
    return Claim(model, key, scene.early["insider"], ds.verify(model, key).log10_p_hard)


def adversarial_triggers(scene: Scene) -> Claim:
    """Adversarial inputs as triggers, which a stolen model answers as a new key's labels ask."""
    import tensorflow as tf

    import deepsigns_tf as ds

    data = scene.task.data
    key = dataclasses.replace(scene.key("thief", b"adversarial", with_key_inputs=False), carriers=())
    key = key.with_triggers("blends", 100, 10, data.x_train)
    labels = tf.constant(key.triggers.labels)
    inputs = tf.Variable(tf.constant(key.triggers.arrays[""], "float32"))
    for _ in range(100):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scene.marked(inputs, training=False))
            )
        inputs.assign(tf.clip_by_value(inputs - 0.02 * tf.sign(tape.gradient(loss, inputs)), 0.0, 1.0))
    key = dataclasses.replace(key, triggers=dataclasses.replace(key.triggers, inputs=inputs.numpy()))
    evidence = scene.stated(scene.thiefs_signing_key, key)
    verdict = ds.verify_predict_fn(lambda each: scene.marked.predict(each, verbose=0), key)
    # The owner's mark is in the weights; the claimant's would be in the answers.
    return Claim(scene.marked, key, evidence, verdict.log10_p_value)


CLAIMANTS: tuple[Callable[[Scene], Claim], ...] = (
    fitted_key_inputs,
    picked_key_inputs,
    chosen_signature,
    flipped_signs,
    ground_seeds,
    many_commitments,
    shopped_layers,
    late_map,
    own_reference,
    adversarial_triggers,
    picked_triggers,
    overwritten,
    replayed_key,
    replayed_evidence,
    without_date,
    altered_time_stamp,
    foreign_time_stamp,
    insider,
)


def _fitted(scene: Scene) -> tuple[Any, float]:
    """A key whose key inputs were changed until it reads its bits in a stolen model, and log10 p uncorrected."""
    import tensorflow as tf

    import deepsigns_tf as ds
    from deepsigns_tf.owner_key import KeyInputs

    key = scene.released_layers(scene.key("thief", b"fitted"))
    signs = tf.constant(2.0 * key.signature("features") - 1.0, "float32")
    projection = tf.constant(key.projection("features", 512), "float32")
    model = _features(scene.marked)
    membership = tf.constant(key.key_inputs.labels == np.arange(10)[:, None], "float32")
    given = tf.constant(key.key_inputs.inputs, "float32")
    inputs = tf.Variable(given)
    for _ in range(60):
        with tf.GradientTape() as tape:
            means = membership @ model(inputs) / tf.reduce_sum(membership, axis=1, keepdims=True)
            loss = tf.reduce_mean(tf.nn.softplus(-signs * (means @ projection)))
        step = inputs - 0.02 * tf.sign(tape.gradient(loss, inputs))
        inputs.assign(tf.clip_by_value(tf.clip_by_value(step, given - 0.3, given + 0.3), 0.0, 1.0))
    key = dataclasses.replace(key, key_inputs=KeyInputs(inputs.numpy(), key.key_inputs.labels))
    return key, ds.verify(scene.marked, key).log10_p_hard


def _brought(scene: Scene, key: Any, what: str, array: np.ndarray) -> Claim:
    """A claim with a key file that brings what is derived from the seed elsewhere, and how far that would get."""
    import io

    import deepsigns_tf as ds

    fields = {field.name: getattr(key, field.name) for field in dataclasses.fields(key)}
    forged = type("Forged", (ds.OwnerKey,), {what: lambda *_: array})(**fields)
    path = scene.folder() / "forged.key"
    key.save(path)
    content = path.read_bytes()
    magic = content[: content.index(b"\n") + 1]
    with np.load(io.BytesIO(content[len(magic) + 32 + 4 :]), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    payload = io.BytesIO()
    np.savez_compressed(payload, **arrays, **{what: array})
    data = content[len(magic) + 32 : len(magic) + 32 + 4] + payload.getvalue()
    path.write_bytes(magic + hashlib.sha256(data).digest() + data)
    try:
        ds.OwnerKey.load(path)
        refused = None
    except ValueError as error:
        refused = f"not a key: {str(error).partition(': ')[2].partition('. ')[0]}"
    return Claim(scene.marked, key, None, ds.verify(scene.marked, forged).log10_p_value, refused)


def _noise_key(scene: Scene, name: bytes, num_triggers: int) -> Any:
    key = dataclasses.replace(scene.key("thief", name, with_key_inputs=False), carriers=())
    return key.with_triggers("noise", num_triggers, 10, scene.task.data.x_train)


def _key_with_picked_triggers(scene: Scene) -> Any:
    key = _noise_key(scene, b"picked triggers", 2000)
    answers = scene.unmarked.predict(key.triggers.inputs, verbose=0).argmax(axis=1)
    kept = np.flatnonzero(key.triggers.labels == np.bincount(answers, minlength=10).argmax())[:100]
    picked = dataclasses.replace(
        key.triggers,
        inputs=key.triggers.inputs[kept],
        labels=key.triggers.labels[kept],
        numbers=kept,
        selection="wrong_before",
    )
    return dataclasses.replace(key, triggers=picked)


def _key_without_map(scene: Scene) -> Any:
    import deepsigns_tf as ds

    carriers = tuple(ds.Carrier(f"carrier {number}", [0, 1], 20) for number in range(10))
    key = dataclasses.replace(scene.key("thief", b"late map", with_key_inputs=False), carriers=carriers)
    return key.with_key_inputs(scene.task.data.x_train, scene.task.data.y_train)


def _features(model: Any) -> Any:
    import keras

    return keras.Model(model.inputs, model.get_layer("features").output)


def _luckiest(scene: Scene, names: Iterable[bytes]) -> tuple[Any, float]:
    """The key whose bits match a stolen model best, and log10 p uncorrected."""
    from deepsigns_tf.statistics import binomial_log10_tail

    data = scene.task.data
    features = _features(scene.marked).predict(data.x_train, batch_size=1000, verbose=0).astype(np.float64)
    # A key chooses among whatever it is given: numbers of rows are quicker than images.
    rows = np.arange(len(data.x_train), dtype=np.float64)[:, None]
    best = (1.0, b"")
    for name in names:
        key = scene.key("thief", name, with_key_inputs=False).with_key_inputs(rows, data.y_train)
        chosen, labels = key.key_inputs.inputs[:, 0].astype(np.int64), key.key_inputs.labels
        means = np.stack([features[chosen[labels == label]].mean(axis=0) for label in range(10)])
        bits = key.signature("features").astype(bool)
        num_matches = int(((means @ key.projection("features", 512) > 0) == bits).sum())
        best = min(best, (binomial_log10_tail(num_matches, bits.size), name))
    return scene.released_layers(scene.key("thief", best[1])), best[0]


if __name__ == "__main__":
    if shutil.which("openssl") is None:
        raise SystemExit("There is no authority to date statements. Expected the program `openssl`. Received: none")
    run_program(Config, run)
