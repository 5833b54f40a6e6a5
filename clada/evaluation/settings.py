"""How much to evaluate, and under which name."""

from dataclasses import dataclass

from clada.errors import CladaError

# The name by which lm-eval finds an artifact: --model clada.
LM_EVAL_MODEL = "clada"


@dataclass(frozen=True)
class EvaluationSettings:
    """Amount of text to read, and how to read it.

    Args:
        sequences: Number of rows of tokens drawn from the text; at least 2, for an interval.
        prompt_tokens: Tokens at the start of a row that are read densely.
        decode_tokens: Tokens after them that are read one by one, and whose successors are scored.
        generation_tokens: Tokens of a generated continuation that are compared with the dense model's.
        seed: Decides which parts of the text are drawn, the tasks' candidates and the resamples.

    Raises:
        CladaError: A value is too small.
    """

    sequences: int = 64
    prompt_tokens: int = 64
    decode_tokens: int = 128
    generation_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        smallest = {"sequences": 2, "prompt_tokens": 1, "decode_tokens": 1, "generation_tokens": 1, "seed": 0}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise CladaError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def row_tokens(self) -> int:
        """Number of tokens in a row: the last one is only predicted."""
        return self.prompt_tokens + self.decode_tokens + 1

    def check_context(self, context_length: int) -> None:
        """Raise CladaError where a row, or a prompt with its continuation, does not fit a model's context."""
        for tokens, names in (
            (self.row_tokens, "prompt_tokens or decode_tokens"),
            (self.prompt_tokens + self.generation_tokens + 1, "prompt_tokens or generation_tokens"),
        ):
            if tokens > context_length:
                raise CladaError(f"{tokens} tokens do not fit the model's context of {context_length}; lower {names}")
