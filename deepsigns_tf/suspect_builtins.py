"""What the configuration of a suspect may name: parts of Keras that compute, and run nothing that a file brings along.

The list is data, so that it can be read without Keras and nothing enters it by itself. `tests/test_suspects.py` holds it against Keras:
each name must be there, and each layer that Keras has must be either here or among those that are refused.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MERGING = "Add Average Concatenate Dot Maximum Minimum Multiply Subtract"
_POOLING = (
    "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D "
    "AdaptiveMaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D GlobalAveragePooling1D GlobalAveragePooling2D "
    "GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D MaxPooling1D MaxPooling2D MaxPooling3D"
)
_CONVOLUTIONS = (
    "Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose DepthwiseConv1D DepthwiseConv2D SeparableConv1D "
    "SeparableConv2D"
)
_RECURRENT = (
    "Bidirectional ConvLSTM1D ConvLSTM2D ConvLSTM3D GRU GRUCell LSTM LSTMCell RNN SimpleRNN SimpleRNNCell StackedRNNCells "
    "TimeDistributed"
)
_CORE = "Dense EinsumDense Embedding Identity InputLayer Masking ReversibleEmbedding SpectralNormalization"
_ATTENTION = "AdditiveAttention Attention GroupQueryAttention MultiHeadAttention"
_ACTIVATIONS = "Activation ELU LeakyReLU PReLU ReLU Softmax"
_NORMALIZATION = "BatchNormalization GroupNormalization LayerNormalization RMSNormalization UnitNormalization"
_REGULARIZATION = (
    "ActivityRegularization AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D "
    "SpatialDropout3D"
)
_SHAPES = (
    "Cropping1D Cropping2D Cropping3D Flatten Permute RepeatVector Reshape UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D "
    "ZeroPadding2D ZeroPadding3D"
)
_PREPROCESSING = (
    "AugMix AutoContrast CategoryEncoding CenterCrop ContrastLimitedAdaptiveHistogramEqualization CutMix Discretization Equalization "
    "HashedCrossing Hashing IntegerLookup MaxNumBoundingBoxes MelSpectrogram MixUp Normalization Pipeline RandAugment RandomBrightness "
    "RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip "
    "RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation "
    "RandomSharpness RandomShear RandomTranslation RandomZoom Rescaling Resizing STFTSpectrogram Solarization StringLookup "
    "TextVectorization"
)

LAYERS = _names(
    " ".join(
        (
            _MERGING,
            _POOLING,
            _CONVOLUTIONS,
            _RECURRENT,
            _CORE,
            _ATTENTION,
            _ACTIVATIONS,
            _NORMALIZATION,
            _REGULARIZATION,
            _SHAPES,
            _PREPROCESSING,
        )
    )
)

# Layers of Keras that run what a file brings along or names.
REFUSED_LAYERS = {
    "Lambda": "runs code that the file brings along",
    "TorchModuleWrapper": "unpickles what the file brings along",
    "TFSMLayer": "runs a SavedModel that the file names",
    "JaxLayer": "runs code that the file brings along",
    "FlaxLayer": "runs code that the file brings along",
}

INITIALIZERS = _names(
    "Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal "
    "LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT STFTInitializer "
    "TruncatedNormal VarianceScaling Zeros"
)
REGULARIZERS = _names("L1 L1L2 L2 OrthogonalRegularizer")
CONSTRAINTS = _names("MaxNorm MinMaxNorm NonNeg UnitNorm")
DTYPE_POLICIES = _names(
    "AWQDTypePolicy DTypePolicy DTypePolicyMap FloatDTypePolicy GPTQDTypePolicy Int4DTypePolicy "
    "QuantizedDTypePolicy QuantizedFloat8DTypePolicy"
)
QUANTIZERS = _names("AbsMaxQuantizer Float8QuantizationConfig Int4QuantizationConfig Int8QuantizationConfig")
ACTIVATIONS = _names(
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear "
    "log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign "
    "sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold"
)

# What `x + y` or `keras.ops.mean(x)` leave in a functional model. None of them takes a function.
OPERATIONS = {
    "keras.src.ops.numpy": _names(
        "Abs Absolute Add All Any Amax Amin Append Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax "
        "Argmin Argsort Average BroadcastTo Ceil Clip Concatenate Copy Cos Cosh CountNonzero Cross Cumprod Cumsum "
        "Diagonal Diff Divide DivideNoNan Dot Einsum Equal Exp Exp2 ExpandDims Expm1 Flip Floor FloorDivide "
        "GetItem Greater GreaterEqual Hstack Isfinite Isinf Isnan Less LessEqual Log Log10 Log1p Log2 Logaddexp "
        "LogicalAnd LogicalNot LogicalOr LogicalXor Matmul Max Maximum Mean Median Min Minimum Mod Moveaxis "
        "Multiply NanToNum Negative NotEqual OnesLike Outer Pad Power Prod Quantile Ravel Reciprocal Repeat "
        "Reshape Roll Round Sign Sin Sinh Sort Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Take "
        "TakeAlongAxis Tan Tanh Tensordot Tile Trace Transpose Tril Triu TrueDivide Trunc Var Vstack Where "
        "ZerosLike"
    ),
    "keras.src.ops.nn": _names(
        "AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm Celu Conv ConvTranspose DepthToSpace "
        "DepthwiseConv DotProductAttention Elu Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LayerNorm "
        "LeakyRelu LogSigmoid LogSoftmax MaxPool Moments MultiHot Normalize OneHot RMSNorm Relu Relu6 Selu "
        "SeparableConv Sigmoid Silu SoftShrink Softmax Softplus Softsign SpaceToDepth SparsePlus SparseSigmoid "
        "Sparsemax Squareplus TanhShrink Threshold"
    ),
    "keras.src.ops.math": _names("Erf Erfinv Logsumexp Rsqrt SegmentMax SegmentSum TopK"),
    "keras.src.ops.core": _names("Cast SaturateCast Slice StopGradient Unstack"),
    "keras.src.ops.image": _names("CropImages ExtractPatches HSVToRGB PadImages Resize RGBToGrayscale RGBToHSV"),
    "keras.src.ops.linalg": _names("Norm"),
}

# Module -> the classes that it may be asked for.
CLASSES: dict[str, frozenset[str]] = {
    "keras": frozenset({"DTypePolicy", "FloatDTypePolicy", "Model", "Sequential"}),
    "keras.models": frozenset({"Model", "Sequential"}),
    "keras.src.models.functional": frozenset({"Functional"}),
    "keras.src.models.model": frozenset({"Model"}),
    "keras.src.models.sequential": frozenset({"Sequential"}),
    "keras.layers": LAYERS,
    "keras.initializers": INITIALIZERS,
    "keras.regularizers": REGULARIZERS,
    "keras.constraints": CONSTRAINTS,
    "keras.dtype_policies": DTYPE_POLICIES,
    "keras.quantizers": QUANTIZERS,
    **OPERATIONS,
}

# Module -> the functions.
FUNCTIONS: dict[str, frozenset[str]] = {
    "builtins": ACTIVATIONS,
    "keras.activations": ACTIVATIONS,
}

# Values, not classes: their configuration is numbers.
VALUES = frozenset({"__keras_tensor__", "__numpy__", "__tensor__", "__slice__", "__ellipsis__"})

# Layers that would read their vocabulary from a file if it were given as a path.
VOCABULARIES = ("vocabulary", "idf_weights")
