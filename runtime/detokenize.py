"""Incremental detokenization: a generation always shows decode(prompt + tokens) less decode(prompt)."""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

# A byte of a character that the vocabulary has no token for, as decoders of the kind ByteFallback read it.
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# What decoding writes for bytes that are no character.
REPLACEMENT = "\ufffd"
# Tokens that are decoded again for each new one, at the least, and at the most where they can be cut.
_SHORTEST_WINDOW, _LONGEST_WINDOW = 32, 96


class Detokenizer:
    """Detokenizer of the tokens that follow a prompt, as they come.

    Given out is only what no later token can change: no part of a character, and of bytes in a row, which a decoder
    reads together, only all. `pending` is the rest.

    Args:
        tokenizer: The model's.
        prompt: The tokens that come before; their text is not given out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # As it is written in a tokenizer's file.
        self._has_bytes = tokenizer.decoder is not None and b'"ByteFallback"' in tokenizer.decoder.__getstate__()
        self._special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        start = self._cut(prompt, len(prompt) - _SHORTEST_WINDOW)
        self._window = list(prompt[start:])
        # A character that begins in the prompt may still change its end.
        self._before = self._decode(self._window)
        self._given: int | None = None
        # What is held back, as it would be where the text ended here.
        self.pending = ""

    def push(self, token: int) -> str:
        """Return the text that one more token makes final; often empty."""
        self._window.append(token)
        text = self._decode(self._window)
        given = self._begin(text)
        certain = max(given, self._certain(text))
        self.pending = text[certain:]
        if certain > given:
            self._given = certain
            self._shorten(text)
        return text[given:certain]

    def _begin(self, text: str) -> int:
        return _common(text, self._before) if self._given is None else min(self._given, len(text))

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _certain(self, text: str) -> int:
        """Length of the window's text that no later token changes."""
        certain = len(text.rstrip(REPLACEMENT))
        if self._has_bytes:
            run = self._run_start(len(self._window))
            if run < len(self._window):
                certain = min(certain, _common(text, self._decode(self._window[:run])))
        return certain

    def _run_start(self, end: int) -> int:
        """Start of the bytes that end at a place in the window; the place itself where there are none."""
        start = end
        for place in range(end - 1, -1, -1):
            kind = self._kind(self._window[place])
            if kind == "text":
                break
            if kind == "byte":
                start = place
        return start

    def _kind(self, token: int) -> str:
        """Kind of a token: text of its own, one byte of it, or nothing, as special and unknown ones are."""
        name = self._tokenizer.id_to_token(token)
        if name is None or token in self._special:
            return "nothing"
        return "byte" if self._has_bytes and _BYTE.fullmatch(name) else "text"

    def _cut(self, tokens: Sequence[int], before: int) -> int:
        """Last place up to a given one at which decoding can begin: it holds text of its own, not a byte."""
        return next((place for place in range(before, 0, -1) if self._kind(tokens[place]) == "text"), 0)

    def _shorten(self, text: str) -> None:
        """Drop the window's oldest tokens, if the rest reads the same without them."""
        if len(self._window) <= _LONGEST_WINDOW or self._given is None:
            return
        start = self._cut(self._window, len(self._window) - _SHORTEST_WINDOW)
        shorter = self._decode(self._window[start:])
        given = self._given - (len(text) - len(shorter))
        # Its first token may lose a space that it has inside a text.
        if start and given > 1 and text.endswith(shorter[1:]):
            self._window, self._given = self._window[start:], given


def _common(one: str, other: str) -> int:
    """Length of the longest common prefix of two texts."""
    if one.startswith(other):
        return len(other)
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class TextStream:
    """Text as it is shown: that of `Detokenizer`, without any part of a stop string.

    Args:
        tokenizer: The model's.
        prompt: The tokens that come before.
        stop: Strings that end the text. Special tokens in them are found, though they are not part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt)
        names = {
            token: added.content
            for token, added in tokenizer.get_added_tokens_decoder().items()
            if added.special and any(added.content in string for string in stop)
        }
        # A special token in a stop string is stood for by a surrogate, which no decoded text holds.
        self._marks = {token: chr(0xD800 + n) for n, token in enumerate(names)}
        self._stop = list(stop)
        for token in sorted(names, key=lambda token: -len(names[token])):
            self._stop = [string.replace(names[token], self._marks[token]) for string in self._stop]
        self._held = ""
        # Marks, and after how many characters of what is held they stand; some of those may be pending yet.
        self._placed: list[tuple[int, str]] = []
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that a token makes final; sets `stopped` when a stop string has come up."""
        self._held += self._detokenizer.push(token)
        # Up to a stop string, the text is what it is where it ends here; half a character is no part of one.
        whole = self._held + self._detokenizer.pending
        if token in self._marks:
            self._placed.append((len(whole), self._marks[token]))
        else:
            whole = self._held + self._detokenizer.pending.rstrip(REPLACEMENT)
        marked = self._with_marks(whole)
        found = [at for at in (marked.find(string) for string in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._shown(marked[: min(found)])
        marked = self._with_marks(self._held)
        keep = max((_overlap(marked, string) for string in self._stop), default=0)
        cut = marked[: len(marked) - keep]
        text = self._shown(cut)
        self._held = self._held[len(text) :]
        self._placed = [(place - len(text), mark) for place, mark in self._placed[len(cut) - len(text) :]]
        return text

    def flush(self) -> str:
        """Return the text that was held back, as the text ends here."""
        return self._held + self._detokenizer.pending

    def _with_marks(self, text: str) -> str:
        for place, mark in reversed(self._placed):
            if place <= len(text):
                text = text[:place] + mark + text[place:]
        return text

    def _shown(self, text: str) -> str:
        if not self._marks:
            return text
        return "".join(character for character in text if character not in self._marks.values())


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if stop.startswith(text[-n:])), 0)
