"""What this package imports from Keras beyond its public API (checked against Keras 3.15).

- `Functional`: the class that `keras.Model(inputs, outputs)` returns. A functional subclass must name it as a base: Keras
  otherwise rewrites the bases of the class for good, and later subclasses with a `call` of their own break.
- `functional_init_arguments`: how Keras tells functional construction.
- `in_symbolic_scope`: whether Keras runs a function on shapes alone, to build what it uses.
- `get_keras_mask`: masks hang on tensors in a way that differs by backend; this is the reader that Keras' own layers use.

Beside these, `activations.py` asks layers for their sublayers (`_flatten_layers`) and `watermarked_model.py` adds its state
in the hook that Keras calls at the end of building (`_post_build`).
"""

from keras.src.backend.common.masking import get_keras_mask
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.models.functional import Functional
from keras.src.models.model import functional_init_arguments

__all__ = ["Functional", "functional_init_arguments", "get_keras_mask", "in_symbolic_scope"]
