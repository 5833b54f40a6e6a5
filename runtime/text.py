"""Text to tokens and back: the tokenizer, and text that grows token by token."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from clada.runtime.artefact import TOKENIZER_NAME


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read an artefact's tokenizer."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_NAME))
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
