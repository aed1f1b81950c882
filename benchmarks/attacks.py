"""What the released models of a study go through, and what is left of their marks."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Attacks:
    """How the released models of a study are attacked.

    Args:
        pruned_fractions: Of the weights, the smallest, with no retraining.
        fine_tuning_epochs: On the task's loss alone, on all training data, with a fresh optimizer at a tenth of the first
            learning rate, constant; 0: not at all.
        overwrites: Whether the owner's whole training is done again, from the released model, with as many other triggers in its batches.
        changes_inputs: Whether the images are changed on their way to the model.
    """

    pruned_fractions: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
    fine_tuning_epochs: int = 10
    overwrites: bool = False
    changes_inputs: bool = False


# What triggers go through: pruning from where the paper's die on.
OF_TRIGGERS = Attacks((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), changes_inputs=True)


def attacked(row: dict[str, Any], program: Any, settings: Any, attacks: Attacks) -> Iterator[dict[str, Any]]:
    """Attacks a released model in all ways that its row does not hold yet.

    Args:
        row: Of a study.
        program: The module that trained the model.
        settings: Of the run.
        attacks: Which.

    Yields:
        What to add to the row, as each kind of attack is done: `pruned`, `changed_inputs`, `fine_tuned`, `overwritten`.
    """
    from deepsigns_tf.attacks.suite import INPUT_CHANGES

    wanted: dict[str, tuple[Any, Any]] = {
        "pruned": ([str(fraction) for fraction in attacks.pruned_fractions], _pruned),
        "changed_inputs": (list(INPUT_CHANGES) if attacks.changes_inputs else None, _with_changed_inputs),
        "fine_tuned": (attacks.fine_tuning_epochs or None, _fine_tuned),
        "overwritten": (settings.epochs if attacks.overwrites else None, _overwritten),
    }
    run = None
    for name, (what, attack) in wanted.items():
        if what is None or what == _done(row.get(name)):
            continue
        run = run or _Run(program, settings)
        yield {name: attack(run, what)}


def _done(part: dict[str, Any] | None) -> Any:
    """What an attack in a row was asked for: its epochs, or its ways."""
    return None if part is None else part.get("epochs", list(part))


class _Run:
    """A finished run: its data, its key, its released model."""

    def __init__(self, program: Any, settings: Any) -> None:
        import deepsigns_tf as ds

        self.settings = settings
        self.folder = pathlib.Path(settings.output_dir)
        self.task = program.task(settings)
        self.owner_key = ds.OwnerKey.load(self.folder / "owner.key")

    def released(self) -> Any:
        """The marked model, as it lies there."""
        import keras

        # Before the model is loaded: dropout layers draw their seeds then.
        keras.utils.set_random_seed(self.settings.seed)
        return keras.models.load_model(self.folder / "marked.keras")

    def outcome(self, model: Any, change: Callable[[Any], Any] = lambda inputs: inputs) -> dict[str, Any]:
        """Accuracy, and what is left of the marks; with inputs changed on their way to the model, those that a thief sees."""
        import deepsigns_tf as ds
        from scripts.fitting import accuracy
        from scripts.training import answers_verdict

        data = self.task.data
        found: dict[str, Any] = {"accuracy": accuracy(model, dataclasses.replace(data, x_test=change(data.x_test)))}
        if self.owner_key.carriers:
            verdict = ds.verify(model, self.owner_key)
            found |= {"bit_error_rate": verdict.bit_error_rate, "log10_p_value": verdict.log10_p_value}
        if self.owner_key.triggers is not None:
            answers = answers_verdict(model, self.owner_key, change=change)
            found["triggers"] = {"num_matches": answers.num_matches, "log10_p_value": answers.log10_p_value}
        return found


def _pruned(run: _Run, fractions: list[str]) -> dict[str, Any]:
    import deepsigns_tf as ds

    released = run.released()
    return {fraction: run.outcome(ds.prune_weights(released, float(fraction))) for fraction in fractions}


def _with_changed_inputs(run: _Run, names: list[str]) -> dict[str, Any]:
    from deepsigns_tf.attacks.inputs import of_model
    from deepsigns_tf.attacks.suite import INPUT_CHANGES

    released, seen = run.released(), run.task.data.x_train
    return {name: run.outcome(released, of_model(INPUT_CHANGES[name], seen)) for name in names}


def _fine_tuned(run: _Run, epochs: int) -> dict[str, Any]:
    import keras

    from deepsigns_tf.attacks.fine_tuning import fine_tune
    from scripts import folders
    from scripts.fitting import recipe_of

    name, config, data = f"fine_tuned_{epochs}", _thiefs(run.settings), run.task.data
    path = run.folder / f"{name}.keras"
    if not path.exists():
        recipe = recipe_of(config, epochs, 0.1 * config.learning_rate, run.folder / f"{name}.backup")
        folders.save_model(fine_tune(run.released(), data.x_train, data.y_train, config.seed, recipe), path)
    model = keras.models.load_model(path)
    return {"epochs": epochs} | run.outcome(model)


def _overwritten(run: _Run, epochs: int) -> dict[str, Any]:
    import keras

    import deepsigns_tf as ds
    from scripts import folders
    from scripts.fitting import cosine_schedule, fit_classifier
    from scripts.marking import add_triggers, generate_key
    from scripts.training import answers_verdict

    name, config = f"overwritten_{epochs}", _thiefs(run.settings)
    key_path, path = run.folder / "thief.key", run.folder / f"{name}.keras"
    if not key_path.exists():
        add_triggers(generate_key(config, run.task), config, run.task, run.released()).save(key_path)
    other_key = ds.OwnerKey.load(key_path)
    if not path.exists():
        model = run.released()
        schedule = cosine_schedule(config, run.task.data, epochs, config.learning_rate)
        fit_classifier(model, run.folder, name, config, run.task.data, epochs, schedule, triggers=other_key.triggers)
        folders.save_model(model, path)
    model = keras.models.load_model(path)
    return {"epochs": epochs} | run.outcome(model) | {"thiefs_matches": answers_verdict(model, other_key).num_matches}


def _thiefs(settings: Any) -> Any:
    """The owner's settings, with another order of the examples."""
    return dataclasses.replace(settings, seed=settings.seed + 1_000_000)
