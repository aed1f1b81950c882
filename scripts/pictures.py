"""Pictures for people, drawn without a screen."""

import io
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from deepsigns_tf.files import write_atomically  # noqa: E402

_STYLES = {"marked": {"color": "#0072b2", "linestyle": "-"}, "unmarked": {"color": "#d55e00", "linestyle": "--"}}


def training_picture(
    histories: Mapping[str, Mapping[str, Sequence[float]]], carrier: str, title: str, path: pathlib.Path
) -> None:
    """Draws loss, accuracy and bit error rate over the epochs.

    Args:
        histories: `"marked"` and `"unmarked"` -> metric -> one value per epoch.
        carrier: Name of the carrier whose bit error rate is drawn.
        title: Above the picture.
        path: Where the PNG goes.
    """
    figure, (loss, accuracy, errors) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, history in histories.items():
        epochs = range(1, len(history["loss"]) + 1)
        loss.plot(epochs, history["loss"], label=name, **_STYLES[name])
        accuracy.plot(epochs, [100 * value for value in history["accuracy"]], label=name, **_STYLES[name])
    marked = histories["marked"]
    epochs = range(1, len(marked["loss"]) + 1)
    loss.plot(epochs, marked[f"{carrier}_signature_loss"], label="signature loss", color="#009e73", linestyle=":")
    errors.plot(epochs, marked[f"{carrier}_bit_error_rate"], label="training means", color="#009e73", linestyle=":")
    errors.plot(
        epochs,
        marked[f"{carrier}_key_bit_error_rate"],
        label="key inputs",
        marker="o",
        markersize=3,
        **_STYLES["marked"],
    )
    loss.set(title="Training loss", yscale="log")
    accuracy.set(title="Training accuracy (%)")
    errors.set(title="Bit error rate", ylim=(-0.02, 0.55))
    errors.axhline(0.5, color="grey", linewidth=0.8)
    errors.annotate("unmarked: one half", (1, 0.5), xytext=(0, 3), textcoords="offset points", color="grey", fontsize=8)
    for axes in (loss, accuracy, errors):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
