"""Pictures for people, drawn without a screen."""

import io
import itertools
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from deepsigns_tf.files import write_atomically  # noqa: E402

_STYLES = {"marked": {"color": "#0072b2", "linestyle": "-"}, "unmarked": {"color": "#d55e00", "linestyle": "--"}}

_CARRIER_COLORS = ("#009e73", "#cc79a7", "#e69f00")
_TRIGGERS_COLOR = "#000000"


def training_picture(
    histories: Mapping[str, Mapping[str, Sequence[float]]], carriers: Sequence[str], title: str, path: pathlib.Path
) -> None:
    """Draws loss, accuracy and bit error rate over the epochs.

    Args:
        histories: `"marked"` and `"unmarked"` -> metric -> one value per epoch.
        carriers: Names of the carriers whose losses and bit error rates are drawn.
        title: Above the picture.
        path: Where the PNG goes.
    """
    figure, (loss, accuracy, errors) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, history in histories.items():
        epochs = [epoch + 1 for epoch in history["epoch"]]
        loss.plot(epochs, history["loss"], label=name, **_STYLES[name])
        accuracy.plot(epochs, [100 * value for value in history["accuracy"]], label=name, **_STYLES[name])
    marked = histories["marked"]
    epochs = [epoch + 1 for epoch in marked["epoch"]]
    for carrier, color in zip(carriers, itertools.cycle(_CARRIER_COLORS), strict=False):
        named = f", {carrier}" if len(carriers) > 1 else ""
        loss.plot(epochs, marked[f"{carrier}_signature_loss"], label=f"signature{named}", color=color, linestyle=":")
        rates = {"batch means": f"{carrier}_bit_error_rate", "key inputs": f"{carrier}_key_bit_error_rate"}
        for (name, metric), style in zip(
            rates.items(), ({"linestyle": ":"}, {"marker": "o", "markersize": 3}), strict=True
        ):
            errors.plot(epochs, marked[metric], label=f"{name}{named}", color=color, **style)
    loss.set(title="Training loss (marked: task and signature)", yscale="log")
    accuracy.set(title="Training accuracy (%)")
    if "trigger_accuracy" in marked:
        missed = [1.0 - share for share in marked["trigger_accuracy"]]
        errors.plot(epochs, missed, label="triggers", color=_TRIGGERS_COLOR, marker="s", markersize=3)
    if carriers:
        errors.set(title="Bit error rate", ylim=(-0.02, 0.55))
        errors.axhline(0.5, color="grey", linewidth=0.8)
        errors.annotate(
            "unmarked: one half", (1, 0.5), xytext=(0, 3), textcoords="offset points", color="grey", fontsize=8
        )
    else:
        errors.set(title="Triggers missed", ylim=(-0.02, 1.02))
    # Where a network that learns leaves room: looking for the best place can take seconds.
    for axes, place in ((loss, "upper right"), (accuracy, "lower right"), (errors, "center right")):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc=place)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
