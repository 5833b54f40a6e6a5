"""Text to tokens and back: the tokenizer, chat templates, and text that grows token by token."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from clada.plugins.errors import CladaError
from clada.runtime.artefact import CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME, Artefact


def load_tokenizer(artefact: Artefact) -> Tokenizer:
    """Read an artefact's tokenizer.

    Raises:
        CladaError: It is damaged, or cannot be read as one.
    """
    content = artefact.required(TOKENIZER_NAME)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more special
        raise CladaError(f"{artefact.path(TOKENIZER_NAME)} holds no tokenizer: {error}; export it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class TextStream:
    """Turns tokens into text as they come: never half a character, never any part of a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, [s for s in stop if s]
        # Given the prompt, the decoder knows whether the first token begins with a space.
        self._decoder = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that a token completes; sets `stopped` when a stop string has come up."""
        self._held += self._decoder.step(self._tokenizer, token) or ""
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def flush(self) -> str:
        """The text that was held back as the possible start of a stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if stop.startswith(text[-n:])), 0)


def _special_token(value: Any) -> str | None:
    return value.get("content") if isinstance(value, Mapping) else value


def render_chat(artefact: Artefact, messages: Sequence[Mapping[str, str]]) -> str:
    """Write a conversation as the model expects it, up to where its answer begins.

    Args:
        artefact: Whose chat template writes it.
        messages: Each with `role` and `content`.

    Raises:
        CladaError: The model has no chat template, or it refuses the messages.
    """
    source = artefact.content(CHAT_TEMPLATE_NAME)
    if source is None:
        raise CladaError("this model has no chat template; use `clada run` with a prompt instead")

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    config = artefact.settings(TOKENIZER_CONFIG_NAME)
    special = {name: _special_token(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        template = environment.from_string(source.decode())
        return template.render(
            messages=list(messages), add_generation_prompt=True, **{k: v for k, v in special.items() if v}
        )
    except jinja2.TemplateError as error:
        raise CladaError(f"the model's chat template refused the conversation: {error}") from error
