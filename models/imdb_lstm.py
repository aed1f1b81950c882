"""A recurrent network for the sentiment of reviews."""

from collections.abc import Callable, Mapping

import keras

# The layers that may carry a mark: the sequence's mean, and the last hidden layer.
POOLED = "pooled"
FEATURES = "features"


def imdb_lstm(
    activity_regularizers: Mapping[str, keras.regularizers.Regularizer] | None = None,
    model_class: Callable[..., keras.Model] = keras.Model,
    num_tokens: int = 20_000,
    sequence_length: int = 400,
    bidirectional: bool = True,
) -> keras.Model:
    """Embedding(128), LSTM(64) in one or both directions, mean over the time steps that are not padding, 512-2.

    Args:
        activity_regularizers: For the layers `"pooled"` and `"features"`, by name; none by default.
        model_class: What to build with: `keras.Model`, or a class that takes its place.
        num_tokens: Size of the vocabulary, the padding's number 0 included.
        sequence_length: Tokens of a text.
        bidirectional: Whether a second LSTM reads backwards; the pooled layer has 128 units then, else 64.

    Returns:
        A functional model from `(batch, sequence_length)` token numbers to `(batch, 2)` logits; 2,725,890 parameters by default.

    Source: after Graves, Schmidhuber, "Framewise phoneme classification with bidirectional LSTM", Neural Networks 18, 2005; the
    layout is ours, the paper has no such network.
    """
    regularizers = activity_regularizers or {}
    inputs = keras.Input((sequence_length,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(num_tokens, 128, mask_zero=True, name="embedded")(inputs)
    x = keras.layers.SpatialDropout1D(0.3, name="embedded_dropout")(x)
    lstm = keras.layers.LSTM(64, return_sequences=True, name="lstm")
    x = keras.layers.Bidirectional(lstm, name="bilstm")(x) if bidirectional else lstm(x)
    # The pooling honours the mask, which a regularizer cannot see.
    x = keras.layers.GlobalAveragePooling1D(activity_regularizer=regularizers.get(POOLED), name=POOLED)(x)
    x = keras.layers.Dropout(0.3, name=f"{POOLED}_dropout")(x)
    x = keras.layers.Dense(512, activation="relu", activity_regularizer=regularizers.get(FEATURES), name=FEATURES)(x)
    x = keras.layers.Dropout(0.5, name=f"{FEATURES}_dropout")(x)
    return model_class(inputs, keras.layers.Dense(2, dtype="float32", name="logits")(x), name="imdb_lstm")
