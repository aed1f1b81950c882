"""A model that MLServer serves: scores that are a matrix product, with the matrix in `weights.npz`."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class LinearModel(MLModel):
    """`(batch, features)` -> `(batch, classes)`."""

    async def load(self) -> bool:
        self._weights = np.load(await get_model_uri(self._settings))["weights"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("scores", inputs @ self._weights)
        return InferenceResponse(model_name=self.name, outputs=[output])
