"""Names of the exported graph's inputs, outputs and calibrated constants, shared by exporter and runtimes."""

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"
PAST_LOGITS = "past_logits"
LOGITS = "logits"
LOAD = "load"
SURPRISAL = "surprisal"
ENTROPY = "entropy"
ACTIVE = "active"
EFFORT = "effort"
READ = "read"

SURPRISAL_KNOTS = "surprisal_knots"
ENTROPY_KNOTS = "entropy_knots"
SCALE_KNOTS = "scale_knots"
REANALYSIS_LOAD = "reanalysis_load"
TOKEN_SCALE = "token_scale"
ROW_SHARE = "row_share"
ANTICIPATION = ("weight", "load_weight", "bias", "knots", "factors")

BATCH_SIZE = "batch_size"
SEQUENCE_LENGTH = "sequence_length"
PAST_SEQUENCE_LENGTH = "past_sequence_length"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"
CACHE_CAPACITY = "cache_capacity"


def pool(layer: int) -> str:
    """Input bool[B, F]: the neurons a layer may use."""
    return f"pool.{layer}"


def score(layer: int) -> str:
    """Output f32[B, F]: the contribution of each neuron of a layer."""
    return f"score.{layer}"


def threshold(site: int) -> str:
    """Initializer f32[F] or f32[D]: calibrated thresholds of a layer's neurons or of a product's inputs."""
    return f"threshold.{site}"


def compensation(layer: int) -> str:
    """Initializer f32[D]: the vector added to a layer's output where it is sparse."""
    return f"compensation.{layer}"


def anticipation(layer: int) -> list[str]:
    """Initializers of the probe at a layer's input: see `exporter.model.anticipation`."""
    return [f"anticipation.{layer}.{name}" for name in ANTICIPATION]


def past(layer: int) -> tuple[str, str]:
    """Inputs: the KV cache of a layer."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present(layer: int) -> tuple[str, str]:
    """Outputs: the keys and values of a layer, those of the past and of this call."""
    return f"present.{layer}.key", f"present.{layer}.value"
