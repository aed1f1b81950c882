"""Attacks a marked model in all ways of a suite and reports what is left of the mark.

    python -m scripts.attack --model=runs/mnist/marked.keras --owner_key=runs/mnist/owner.key --output_dir=runs/mnist_attacked
    python -m scripts.attack --model=model.keras --owner_key=owner.key --data=task.npz --output_dir=attacked --suite=paper

A model in the folder of a training run brings its data, its recipe and its unmarked twin; any other needs `--data`, and
`--learning_rate` and the like where the defaults are not its own. The folder then holds `attacks.json`, `attacks.md`, `attacks.png`, and
every attacked model.

All models here are the owner's own: they are loaded in this process, where attacks train them further. `scripts.verify` opens what is
somebody else's.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib
import json
import pathlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from scripts.configs import command_line, option, result_settings, run_program

if TYPE_CHECKING:
    from deepsigns_tf.attacks.outcomes import Examiner
    from deepsigns_tf.attacks.thief import Attack, Thief
    from deepsigns_tf.recovery import AlignedReading
    from scripts.datasets import Dataset

PROGRAM = "scripts.attack"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to attack, how, and with what."""

    model: str = option(
        dataclasses.MISSING, "The marked model, a `.keras` file of your own: it is loaded in this process."
    )
    owner_key: str = option(dataclasses.MISSING, "Its owner's key, as written after the release.")
    output_dir: str = option(dataclasses.MISSING, "Folder for report and attacked models.", shapes_result=False)
    suite: str = option(
        "quick",
        "What needs no training; the paper's three; both; all of the suite.",
        choices=("quick", "paper", "brief", "full"),
    )
    only: str = option("", "Only attacks whose name this regular expression finds, and those that they start from.")
    extra: str | None = option(None, "Module whose `ATTACKS` are tried too.")
    seed: int = option(
        0, "It fixes all that the thief draws, whatever model is attacked.", minimum=0, maximum=2**31 - 1
    )
    fine_tuning_epochs: str = option("10,50,100,200", "After how many epochs of fine-tuning to look.")
    overwriting_epochs: str = option("10,100", "After how many epochs of the thief's own marking to look.")
    reference: str | None = option(None, "The model from before the mark that the key refers to, for exact recovery.")
    unrelated: str | None = option(
        None,
        "Folder of unrelated `.keras` models of the task, your own, for recovery by counting; a tenth of them sets the gate.",
    )
    num_unrelated: int = option(0, "How many of these, in the order of their names; 0: all.", minimum=0)
    data: str | None = option(
        None, "An .npz file with x_train, y_train, x_test, y_test; a training run's own data by default."
    )
    data_dir: str | None = option(None, "TFDS folder; its default one if not given.", shapes_result=False)
    epochs: int = option(20, "The task's own training, of which an adaptive thief has a tenth.", minimum=1)
    learning_rate: float = option(1e-3, "The first one of the task's training; its tenth fine-tunes.", minimum=0.0)
    optimizer: str = option("adam", "The task's.", choices=("adam", "sgd"))
    batch_size: int = option(128, "Examples a step.", minimum=1)
    label_smoothing: float = option(
        0.0, "Share of the target that all classes have alike, as in the task's training.", minimum=0.0, maximum=1.0
    )
    augment: bool = option(False, "Shift and mirror images as the task's training does.")
    strength: float = option(1.0, "Of the owner's mark, which a thief's own is measured by.", minimum=0.0)
    thiefs_strength: float = option(0.0, "Of the thief's own mark where it is 1 x; 0: the owner's.", minimum=0.0)
    thiefs_carriers: str = option(
        "", "Layers that the thief marks, and bits of each label: layer:bits,layer:bits. Empty: the owner's."
    )
    num_workers: int = option(2, "Attacks at a time, each on a core of its own.", minimum=1, shapes_result=False)
    resume: bool = option(False, "Go on with an interrupted suite in the folder.", shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Runs the suite.

    Args:
        config: What to do.

    Returns:
        What `attacks.json` holds.

    Raises:
        ValueError: If files, data and settings do not fit each other, or the folder holds another suite.
    """
    from scripts.attack_report import attacks_picture, write_report
    from scripts.cores import pool_on_cores
    from scripts.records import circumstances

    config = with_settings_of_run(config)
    attacks = chosen(config)
    model = _examined(config.model)
    check_data(config, model)
    check_mark(config, model)
    check_unrelated(config)
    folder = pathlib.Path(config.output_dir)
    _claim(folder, config)
    examiner = _examiner(config)
    before = examiner.outcome(model)
    result = {
        **circumstances(command_line(PROGRAM, config)),
        "data": _data(config).name,
        "settings": suite_settings(config),
        "files": _digests(config),
        "log10_alpha": examiner.owner_key.decision.log10_alpha(committed=True),
        "marked": before,
        **_controls(config, examiner),
    }
    rows: dict[str, dict[str, Any]] = {}
    with pool_on_cores(config.num_workers) as pool:
        waiting = list(attacks)
        running: set[concurrent.futures.Future[dict[str, Any]]] = set()
        while waiting or running:
            ready = [attack for attack in waiting if attack.after is None or attack.after in rows]
            waiting = [attack for attack in waiting if attack not in ready]
            without_start = [attack for attack in ready if "refused" in rows.get(attack.after or "", {})]
            running |= {
                pool.submit(attack_once, config, attack.name, before["accuracy"])
                for attack in ready
                if attack not in without_start
            }
            found = [_without_start(attack, rows[str(attack.after)]) for attack in without_start]
            if not found:
                done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                found = [job.result() for job in done]
            for row in found:
                rows[row["attack"]] = row
                print(f"{len(rows)} of {len(attacks)}: {row['attack']}: {row['survived']}", flush=True)
            result["rows"] = [rows[attack.name] for attack in attacks if attack.name in rows]
            # Of the rows, not of the day on which they are put together.
            days = sorted({row["date"] for row in result["rows"] if "date" in row} or {result["date"]})
            result["date"] = " to ".join(dict.fromkeys([days[0], days[-1]]))
            write_report(result, folder)
    attacks_picture(result, folder / "attacks.png")
    print(f"Report: {folder / 'attacks.md'}, picture: {folder / 'attacks.png'}")
    return result


def with_settings_of_run(config: Config) -> Config:
    """The configuration with the recipe of the training run in whose folder the model lies, if no data is given.

    Args:
        config: As the flags say.

    Raises:
        ValueError: If the model lies in no such folder and there is no data either.
    """
    if config.data is not None:
        return config
    settings = _settings_of_run(config)
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    others = {
        name: getattr(config, name)
        for name in _OF_THE_RECIPE
        if getattr(config, name) not in (defaults[name], settings[name])
    }
    if others:
        raise ValueError(
            f"The model was trained otherwise. Expected { {name: settings[name] for name in others} }, as its folder says, or the flag "
            f"`data`. Received: {others}"
        )
    return dataclasses.replace(config, **{name: settings[name] for name in _OF_THE_RECIPE})


def suite_settings(config: Config) -> dict[str, Any]:
    """What a suite's rows depend on, but for its files, which may lie elsewhere when it goes on; their digests stand beside this.

    Args:
        config: With the settings of the run.
    """
    return {name: value for name, value in result_settings(config).items() if name not in _FILES}


def chosen(config: Config) -> "tuple[Attack, ...]":
    """The attacks to run; each stands after the one that it starts from.

    Args:
        config: Suite, further attacks, and which of them.

    Raises:
        ValueError: If a flag is malformed, two attacks have one name, or none is left.
    """
    import deepsigns_tf as ds
    from deepsigns_tf.attacks.suite import suite

    try:
        wanted_name = re.compile(config.only)
    except re.error as error:
        raise ValueError(
            f"Invalid value for flag `only`. Expected a regular expression. Received: only={config.only!r}, {error}"
        ) from error
    attacks = suite(config.suite, _epochs(config, "fine_tuning_epochs"), _epochs(config, "overwriting_epochs"))
    if config.extra is not None:
        attacks += tuple(importlib.import_module(config.extra).ATTACKS)
    if ds.OwnerKey.load(config.owner_key).triggers is None:
        # Whoever reads weights needs no answers.
        attacks = tuple(attack for attack in attacks if attack.change is None)
    named = {attack.name: attack for attack in attacks}
    wanted = {attack.name for attack in attacks if wanted_name.search(attack.name)}
    for attack in reversed(attacks):
        if attack.name in wanted and attack.after is not None:
            wanted.add(attack.after)
    slugs = {_slug(name) for name in named} - {""}
    if len(slugs) != len(attacks) or not wanted or not wanted <= set(named):
        raise ValueError(
            "These attacks cannot be run. Expected at least one, with names of their own, after others of the suite. "
            f"Received: {sorted(wanted)} of {len(attacks)} attacks with {len(named)} names, only={config.only!r}"
        )
    return tuple(attack for attack in attacks if attack.name in wanted)


def result_path(config: Config, name: str) -> pathlib.Path:
    """Where the attacked model lies.

    Args:
        config: The suite.
        name: Of the attack.
    """
    return pathlib.Path(config.output_dir) / "models" / f"{_slug(name)}.keras"


def attack_once(config: Config, name: str, accuracy_before: float) -> dict[str, Any]:
    """Runs one attack, unless its row is there already, and leaves the attacked model beside the row.

    Args:
        config: The suite.
        name: Of the attack.
        accuracy_before: Of the marked model.

    Returns:
        The row.
    """
    from deepsigns_tf.attacks.outcomes import survived
    from scripts.records import today, write_json

    attack = next(each for each in chosen(config) if each.name == name)
    folder = pathlib.Path(config.output_dir)
    path = folder / "rows" / f"{_slug(name)}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    row: dict[str, Any] = {"attack": name, "family": attack.family}
    try:
        thief = _thief(config, folder / "backups" / _slug(name))
        if attack.change is None:
            attacked, row["seconds"] = _attacked(config, attack, thief)
            outcome = _examiner(config).outcome(attacked)
        else:
            outcome = _examiner(config).outcome(_examined(config.model), attack.change(thief))
        row |= outcome | {
            "accuracy_before": accuracy_before,
            "survived": survived(outcome, accuracy_before),
            "date": today(),
        }
        if row["survived"] != "yes" and {"referred", "aligned"} & outcome.keys():
            row["recovered"] = row["survived"].startswith("recovered")
        if {"weights", "answers"} <= outcome.keys():
            row["answers_survived"] = survived(outcome, accuracy_before, "answers")
        write_json(path, row)
    except Exception as error:  # One attack that fails must not end the others; its row stays in the report.
        # A model that cannot be attacked in this way is told by a `ValueError`, as all that is refused. Neither is kept: a disk that was
        # full may have room when the suite goes on.
        failed = "not applicable" if isinstance(error, ValueError) else "failed"
        row |= {"refused": f"{type(error).__name__}: {error}", "survived": failed}
    return row


def check_data(config: Config, model: Any) -> None:
    """Refuses data that the model does not fit, before anything is attacked.

    Args:
        config: Data.
        model: The one that is to be attacked.

    Raises:
        ValueError: If shapes, types or labels are not those of a classifier's task.
    """
    import numpy as np

    data = _data(config)
    _marks(config, {})
    num_classes, shape = model.output_shape[-1], model.input_shape[1:]
    for part in ("train", "test"):
        x, y = (getattr(data, f"{name}_{part}") for name in "xy")
        are_labels = y.ndim == 1 and np.issubdtype(y.dtype, np.integer) and len(x) == len(y) > 0
        fits = x.ndim == len(shape) + 1 and all(
            want in (None, got) for want, got in zip(shape, x.shape[1:], strict=True)
        )
        if are_labels and fits and y.min() >= 0 and y.max() < num_classes:
            continue
        raise ValueError(
            f"This data is not the model's. Expected inputs (n, {', '.join(map(str, shape))}) and as many integer labels in "
            f"[0, {num_classes}). Received: x_{part} {x.shape} {x.dtype}, y_{part} {y.shape} {y.dtype}"
        )


def check_mark(config: Config, model: Any) -> None:
    """Refuses a model that carries no mark to attack, and a reference that is not the key's, before hours of work.

    Args:
        config: Key and reference.
        model: The one that is to be attacked.

    Raises:
        ValueError: If the mark is not there at the level of committed claims, or cannot be read.
    """
    import deepsigns_tf as ds

    owner_key = ds.OwnerKey.load(config.owner_key)
    commitment = owner_key.commitment()
    if owner_key.carriers:
        verdict: ds.Verdict | ds.TriggerVerdict = ds.verify(
            model, owner_key, commitment=commitment, reference=config.reference
        )
    else:
        verdict = ds.verify_predict_fn(
            lambda inputs: model.predict(inputs, verbose=0), owner_key, commitment=commitment, batch_size=1000
        )
    if not verdict.marked:
        raise ValueError(
            "There is no mark to attack. Expected a model that the key marks at the level of committed claims. "
            f"Received: p = 10^{verdict.log10_p_value:.1f}"
        )


def check_unrelated(config: Config) -> None:
    """Refuses too few unrelated models, before hours of work.

    Args:
        config: Where they are, and how many.

    Raises:
        ValueError: If there are fewer than asked for, or too few to set a gate and count.
    """
    if config.unrelated is None:
        return
    found, wanted = len(_unrelated_files(config)), max(config.num_unrelated, _GATE_SHARE)
    if found < wanted:
        raise ValueError(
            f"Too few models to count by. Expected at least {wanted} .keras files. Received: {found} in {config.unrelated}"
        )


_FILES = ("model", "owner_key", "reference", "unrelated", "data")
_OF_THE_RECIPE = ("epochs", "learning_rate", "optimizer", "batch_size", "label_smoothing", "augment", "strength")
# One of ten unrelated models serves to set the gate and not to count.
_GATE_SHARE = 10


def _epochs(config: Config, flag: str) -> tuple[int, ...]:
    parts = getattr(config, flag).split(",")
    epochs = tuple(int(part) for part in parts if part.isdecimal())
    if len(epochs) != len(parts) or 0 in epochs or list(epochs) != sorted(set(epochs)):
        raise ValueError(
            f"Invalid value for flag `{flag}`. Expected rising numbers of epochs, as in 50,100. "
            f"Received: {flag}={getattr(config, flag)!r}"
        )
    return epochs


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")


def _settings_of_run(config: Config) -> dict[str, Any]:
    path = pathlib.Path(config.model).parent / "config.json"
    if not path.exists():
        raise ValueError(
            "There is no data to attack with. Expected a model in the folder of a training run, or the flag `data`. "
            f"Received: model={config.model}, data=None"
        )
    return dict(json.loads(path.read_text()))


def _attacked(config: Config, attack: "Attack", thief: "Thief") -> tuple[Any, float]:
    """What an attack makes of the model, as an earlier run of the suite has left it if that got so far; and the seconds that it took."""
    from scripts.folders import save_model
    from scripts.records import write_json

    folder, slug = pathlib.Path(config.output_dir), _slug(attack.name)
    path, clock = result_path(config, attack.name), folder / "seconds" / f"{slug}.json"
    if not path.exists():
        start = config.model if attack.after is None else result_path(config, attack.after)
        write_json(clock, _spent(clock, (folder / "backups" / slug).rglob("*")))
        save_model(attack.run(_model(str(start)), thief), path)
    return _examined(str(path)), round(_spent(clock, [path]), 1)


def _without_start(attack: "Attack", start: dict[str, Any]) -> dict[str, Any]:
    """The row of an attack whose predecessor has left nothing; it is no more than that."""
    refused = f"there is no result of {attack.after!r} to start from"
    return {"attack": attack.name, "family": attack.family, "refused": refused, "survived": start["survived"]}


def _controls(config: Config, examiner: "Examiner") -> dict[str, Any]:
    """What the owner's key reads in models that are no copies: the unmarked twin of a training run, and the unrelated ones."""
    found: dict[str, Any] = {}
    twin = pathlib.Path(config.model).with_name("unmarked.keras")
    if config.data is None and twin.exists():
        found["unmarked_twin"] = examiner.outcome(_examined(str(twin)))
    if examiner.unrelated:
        through = [reading for reading in examiner.unrelated if reading.quality > examiner.gate]
        found["unrelated"] = {
            "num_models": len(examiner.unrelated),
            "gate": examiner.gate,
            "largest_quality": max(reading.quality for reading in examiner.unrelated),
            "smallest_bit_error_rate": min(reading.bit_error_rate for reading in examiner.unrelated),
            "num_through_the_gate": len(through),
        }
    return found


def _spent(clock: pathlib.Path, kept: Iterable[pathlib.Path]) -> float:
    """Seconds of work that was not lost, over all stretches of an attack that was interrupted.

    Args:
        clock: Written when a stretch begins, with the seconds of those before.
        kept: What the last stretch has left.
    """
    if not clock.exists():
        return 0.0
    last = max((each.stat().st_mtime for each in kept), default=0.0)
    return float(json.loads(clock.read_text())) + max(0.0, last - clock.stat().st_mtime)


def _digests(config: Config) -> dict[str, str | None]:
    """What the files of a suite are told by: SHA-256 of their bytes, of a folder's models together; of a key what is public."""
    import deepsigns_tf as ds
    from deepsigns_tf.files import file_digest

    found: dict[str, str | None] = {}
    for name in _FILES:
        path = getattr(config, name)
        found[name] = file_digest(path) if path is not None and pathlib.Path(path).is_file() else None
    found["owner_key"] = ds.OwnerKey.load(config.owner_key).commitment()
    if config.unrelated is not None:
        digests = " ".join(file_digest(each) for each in _unrelated_files(config))
        found["unrelated"] = hashlib.sha256(digests.encode()).hexdigest()
    return found


def _claim(folder: pathlib.Path, config: Config) -> None:
    from scripts.folders import other_settings
    from scripts.records import write_json

    # Not the hidden ones: a killed program may have left half of a file under its temporary name.
    held = sorted(each.name for each in folder.iterdir() if not each.name.startswith(".")) if folder.exists() else []
    if held and not (config.resume and "config.json" in held):
        raise ValueError(
            "This folder is not empty. Expected an empty folder, or `--resume` to go on with a suite in it. "
            f"Received: {held[:5]} in output_dir={config.output_dir}"
        )
    files = _digests(config)
    if held:
        recorded = json.loads((folder / "config.json").read_text())
        other = other_settings(config, PROGRAM, recorded, {*_FILES, "files"})
        other |= {name: digest for name, digest in files.items() if digest != recorded.get("files", {}).get(name)}
        if other:
            expected = {name: (recorded | recorded.get("files", {})).get(name) for name in other}
            raise ValueError(
                f"This folder holds a suite of other settings or files. Expected {expected}. Received: {other}"
            )
    # First: a folder without it could not be gone on with.
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"program": PROGRAM, **suite_settings(config), "files": files})
    for part in ("rows", "models", "seconds"):
        (folder / part).mkdir(exist_ok=True)


def _model(path: str) -> Any:
    """One of the owner's own, or what an attack of this suite made of it: it is trained further, so it must be in this process."""
    import keras

    return keras.models.load_model(path, compile=False, safe_mode=True)


def _examined(path: str) -> Any:
    """A model as it is looked at; training may go on in half precision."""
    from deepsigns_tf.attacks.graphs import in_float32

    return in_float32(_model(path))


# Of one suite: a study goes through many in one process, each with data of its own.
@functools.lru_cache(maxsize=1)
def _data(config: Config) -> "Dataset":
    import numpy as np

    from scripts.datasets import Dataset

    if config.data is None:
        settings = _settings_of_run(config)
        name = settings.pop("program")
        if not re.fullmatch(r"(scripts|benchmarks)\.train_\w+", name):
            raise ValueError(
                "The folder of the model is none of a training run. Expected one of the programs `train_*` in its config.json. "
                f"Received: {name!r}"
            )
        program = importlib.import_module(name)
        return program.task(program.Config(output_dir="", data_dir=config.data_dir, **settings)).data  # type: ignore[no-any-return]
    names = ("x_train", "y_train", "x_test", "y_test")
    with np.load(config.data, allow_pickle=False) as archive:
        if set(names) != set(archive.files):
            raise ValueError(
                f"This is no data to attack with. Expected the arrays {list(names)}. Received: {archive.files} in {config.data}"
            )
        return Dataset(pathlib.Path(config.data).name, *(archive[name] for name in names))


def _thief(config: Config, backup_dir: pathlib.Path) -> "Thief":
    import deepsigns_tf as ds
    from deepsigns_tf.attacks.graphs import flat_name
    from deepsigns_tf.attacks.thief import Thief, thiefs_seed
    from scripts.fitting import recipe_of

    data, owner_key = _data(config), ds.OwnerKey.load(config.owner_key)
    recipe = recipe_of(config, config.epochs, config.learning_rate, backup_dir)
    carriers = {flat_name(layer.path): owner_key.carrier(layer.carrier) for layer in owner_key.layers}
    strength = config.thiefs_strength or config.strength
    return Thief(
        data.x_train, data.y_train, recipe, strength, carriers, _marks(config, carriers), thiefs_seed(str(config.seed))
    )


def _marks(config: Config, carriers: dict[str, Any]) -> dict[str, Any]:
    """What the thief marks, by the names of the layers."""
    import deepsigns_tf as ds
    from deepsigns_tf.attacks.graphs import flat_name

    marks = {}
    for each in config.thiefs_carriers.split(",") if config.thiefs_carriers else ():
        layer, _, bits = each.partition(":")
        if not layer or not bits.isdecimal():
            raise ValueError(
                "Invalid value for flag `thiefs_carriers`. Expected layer:bits or layer:bits,layer:bits. "
                f"Received: thiefs_carriers={config.thiefs_carriers!r}"
            )
        marks[flat_name(layer)] = ds.Carrier(layer, range(_data(config).num_classes), int(bits))
    return marks or carriers


@functools.lru_cache(maxsize=1)
def _examiner(config: Config) -> "Examiner":
    import deepsigns_tf as ds
    from deepsigns_tf.attacks.outcomes import Examiner

    data, owner_key, marked = _data(config), ds.OwnerKey.load(config.owner_key), _examined(config.model)
    unrelated = _unrelated(config, owner_key, marked)
    num_for_gate = len(unrelated) // _GATE_SHARE
    gate = max((reading.quality for reading in unrelated[:num_for_gate]), default=0.0)
    return Examiner(owner_key, marked, data.x_test, data.y_test, config.reference, gate, unrelated[num_for_gate:])


def _unrelated(config: Config, owner_key: Any, marked: Any) -> "list[AlignedReading]":
    """Readings of the unrelated models, taken once."""
    from deepsigns_tf.recovery import AlignedReading, read_aligned
    from deepsigns_tf.responses import Remembered
    from scripts.records import write_json

    if config.unrelated is None:
        return []
    path = pathlib.Path(config.output_dir) / "unrelated.json"
    if not path.exists():
        known = Remembered(marked)
        readings = [read_aligned(_examined(str(each)), owner_key, known) for each in _unrelated_files(config)]
        write_json(path, [dataclasses.asdict(reading) for reading in readings])
    return [AlignedReading(**reading) for reading in json.loads(path.read_text())]


def _unrelated_files(config: Config) -> list[pathlib.Path]:
    # Not the ones that another process is still writing.
    files = pathlib.Path(str(config.unrelated)).glob("*.keras")
    return sorted(each for each in files if not each.name.startswith("unfinished_"))[: config.num_unrelated or None]


if __name__ == "__main__":
    run_program(Config, run)
