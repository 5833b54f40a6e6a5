"""Generation settings in a model's own files: sampling, and the tokens that end a text."""

import warnings
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from clada.contract.artifact import GENERATION_CONFIG_NAME, Artifact
from clada.errors import CladaError
from clada.runtime.chat.template import render_chat, special_tokens
from clada.runtime.sampling import SamplingConfig

# What transformers chooses by where a model that samples does not say.
_SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
# Settings that change which tokens are chosen and that we do not carry out, with what leaves the choice alone.
_NOT_CARRIED_OUT: Mapping[str, Any] = {
    "num_beams": 1,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "penalty_alpha": 0.0,
    "guidance_scale": 1.0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
}

# An answer that no template holds by itself.
_ANSWER = "answer-that-ends-here"


def default_sampling(config: Mapping[str, Any]) -> SamplingConfig:
    """Default sampling of a model, read from its generation configuration as transformers does.

    Greedy unless `do_sample` is true; temperature 1 and top-k 50 where it is and the configuration gives none. What is
    not carried out here is named in a warning.

    Raises:
        CladaError: A setting has a value that makes no sense.
    """
    ignored = [
        f"{name}={config[name]}"
        for name, nothing in _NOT_CARRIED_OUT.items()
        if config.get(name) not in (None, nothing, [], {})
    ]
    if ignored:
        warnings.warn(
            f"the model's {GENERATION_CONFIG_NAME} asks for {', '.join(ignored)}, which has no effect here",
            stacklevel=2,
        )
    sampled = config.get("do_sample") is True
    settings = {name: _given(config, name, usual) for name, usual in _SAMPLED.items()} if sampled else {}
    try:
        return SamplingConfig(repetition_penalty=_given(config, "repetition_penalty", 1.0), **settings)
    except CladaError as error:
        raise CladaError(f"the model's {GENERATION_CONFIG_NAME}: {error}") from error


def _given(config: Mapping[str, Any], name: str, usual: float) -> Any:
    value = config.get(name)
    return usual if value is None else value


def end_tokens(artifact: Artifact, config: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a text: those of the generation configuration, the tokenizer's, and the chat template's.

    Args:
        artifact: Artifact with the chat template and the tokenizer.
        config: Its generation configuration.
        tokenizer: Its tokenizer.

    Raises:
        CladaError: The generation configuration names what are no tokens.
    """
    value = config.get("eos_token_id")
    named = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in named):
        raise CladaError(f"the model's {GENERATION_CONFIG_NAME} gives eos_token_id {value}; it must be integers")
    end = special_tokens(artifact).get("eos_token")
    others = [None if end is None else tokenizer.token_to_id(end), _end_of_turn(artifact, tokenizer)]
    return frozenset([*named, *(token for token in others if token is not None)])


def _end_of_turn(artifact: Artifact, tokenizer: Tokenizer) -> int | None:
    """Token that the chat template writes after an answer, if there is one."""
    conversation = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = render_chat(artifact, conversation, add_generation_prompt=False)
    except CladaError:  # there is none, or it takes no such conversation
        return None
    _, answer, rest = text.rpartition(_ANSWER)
    names = {added.content: token for token, added in tokenizer.get_added_tokens_decoder().items()}
    found = [name for name in names if answer and rest.lstrip().startswith(name)]
    return names[max(found, key=len)] if found else None
