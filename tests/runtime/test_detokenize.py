"""Text as it comes, against the tokenizer's own decoding of all tokens at once."""

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from clada.runtime.detokenize import Detokenizer, TextStream

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁the", "▁a", "th", "e", "é", "日", "▁—", "\n", "s", ".", "<0", "▁▁", "\ufffd"]
SPECIAL = ["<s>", "</s>", "<|end|>"]


def with_vocabulary(words: list[str], decoder, model=None) -> Tokenizer:
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(model(vocabulary) if model else models.BPE(vocab=vocabulary, merges=[]))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = with_vocabulary([*alphabet, "Ġthe", "ing", "Ã©", "æĹ", "ï¿½"], decoders.ByteLevel())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def llama() -> Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer = with_vocabulary([*WORDS, *BYTES], decoders.Sequence(steps))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def gemma() -> Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return with_vocabulary([*WORDS, *BYTES], decoders.Sequence(steps))


def metaspace() -> Tokenizer:
    return with_vocabulary(WORDS, decoders.Metaspace())


def suffixed() -> Tokenizer:
    return with_vocabulary(["th", "e</w>", "a</w>", "日", ".</w>"], decoders.BPEDecoder())


def word_piece() -> Tokenizer:
    words = ["[UNK]", "the", "##s", "##ing", ".", "do", "not", "'", "é"]
    return with_vocabulary(words, decoders.WordPiece(), lambda v: models.WordPiece(v, unk_token="[UNK]"))


def plain() -> Tokenizer:
    return with_vocabulary(["the", "a", "日"], None, lambda v: models.WordLevel(v, unk_token="a"))


def replaced() -> Tokenizer:
    return with_vocabulary(WORDS, decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.Fuse()]))


KINDS = {kind.__name__: kind for kind in (byte_level, llama, gemma, metaspace, suffixed, word_piece, plain, replaced)}


def difference(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> str:
    """decode(prompt + tokens) less decode(prompt), of which a character that was not whole may have changed."""
    whole, before = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt + tokens, prompt))
    same = 0
    while same < min(len(whole), len(before)) and whole[same] == before[same]:
        same += 1
    return whole[same:]


def random_tokens(source: random.Random, tokenizer: Tokenizer, count: int) -> list[int]:
    """Of all ids, those that the tokenizer lacks included, in runs of one sort."""
    size = tokenizer.get_vocab_size()
    groups = [range(size + 3), range(min(14, size)), range(max(0, size - 6), size)]
    high = [tokenizer.token_to_id(name) for name in BYTES[128:]]
    if high[0] is not None:
        groups += [high, [tokenizer.token_to_id(name) for name in BYTES]]
    tokens: list[int] = []
    while len(tokens) < count:
        group = source.choice(groups)
        tokens += source.choices(group, k=source.randint(1, 9))
    return tokens[:count]


def characters(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of the bytes of a text."""
    mapping = {byte: tokenizer.token_to_id(name) for byte, name in enumerate(BYTES)}
    if mapping[0] is None:
        return tokenizer.encode(text, add_special_tokens=False).ids
    return [mapping[byte] for byte in text.encode()]


@pytest.mark.fault("text", "random legal tokens, of every kind of tokenizer", now="the text is what decoding gives")
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_that_of_decoding_all_tokens(kind, record_property):
    tokenizer, source = KINDS[kind](), random.Random(0)
    cases = 0
    for prompt_length in (0, 1, 2, 5, 40, 150):
        for length in (1, 3, 12, 60, 250):
            prompt = random_tokens(source, tokenizer, prompt_length)
            tokens = random_tokens(source, tokenizer, length)
            stream, shown = Detokenizer(tokenizer, prompt), ""
            for count, token in enumerate(tokens, 1):
                shown += stream.push(token)
                if count % 7 == 0 or count == length:
                    assert shown + stream.pending == difference(tokenizer, prompt, tokens[:count])
                    cases += 1
    record_property("cases", cases)


@pytest.mark.fault(
    "text", "a prompt or an answer that ends inside a character", now="shown as decoding all tokens gives"
)
@pytest.mark.parametrize("kind", ["byte_level", "llama", "gemma"])
@pytest.mark.parametrize("cut", range(1, 12))
def test_characters_that_begin_in_the_prompt(kind, cut):
    tokenizer = KINDS[kind]()
    ids = characters(tokenizer, "x \ufffdé日🎉 y")
    stream = TextStream(tokenizer, ids[:cut], ())
    shown = "".join(stream.push(token) for token in ids[cut:-4]) + stream.flush()
    assert shown == difference(tokenizer, ids[:cut], ids[cut:-4])
    whole = TextStream(tokenizer, [], ())
    assert "".join(whole.push(token) for token in ids) + whole.flush() == "x \ufffdé日🎉 y"
    torn = TextStream(tokenizer, [], ())
    pieces = [torn.push(token) for token in ids[:cut]]
    assert "".join(pieces) + torn.flush() == tokenizer.decode(ids[:cut])


def test_characters_are_shown_as_soon_as_they_are_whole():
    tokenizer = byte_level()
    ids = characters(tokenizer, "a日b")
    stream = Detokenizer(tokenizer, [])
    assert [stream.push(token) for token in ids] == ["a", "", "", "日", "b"]


def test_long_texts_are_not_decoded_again_from_the_start():
    for kind in KINDS.values():
        tokenizer = kind()
        stream = Detokenizer(tokenizer, [0] * 5000)
        tokens = random_tokens(random.Random(1), tokenizer, 1500)
        shown = "".join(stream.push(token) for token in tokens)
        assert len(stream._window) < 400
        assert shown + stream.pending == difference(tokenizer, [0] * 5000, tokens)


@pytest.mark.fault("text", "a stop string that is a special token, or holds one", now="ends the text")
@pytest.mark.parametrize("kind", ["byte_level", "llama"])
@pytest.mark.parametrize("stop", ["<|end|>", "<|end|>\n", "e<|end|>", "</s><|end|>"])
def test_stop_strings_of_special_tokens(kind, stop):
    tokenizer = KINDS[kind]()
    end, begin, close = (tokenizer.token_to_id(name) for name in ("<|end|>", "<s>", "</s>"))
    the, newline = characters(tokenizer, "the"), characters(tokenizer, "\n")
    tokens = [*the, begin, *the, close, end, *newline, *the]
    if "s>" not in stop:
        tokens.remove(close)
    stream, shown, read = TextStream(tokenizer, [], (stop,)), "", 0
    for token in tokens:
        shown += stream.push(token)
        read += 1
        if stream.stopped:
            break
    assert stream.stopped
    assert shown == ("theth" if stop.startswith("e") else "thethe")
    assert read == len(tokens) - len(the) - (0 if stop.endswith("\n") else len(newline))
    unused = TextStream(tokenizer, [], ("<|end|>?",))
    assert "".join(unused.push(token) for token in tokens) + unused.flush() == "thethe\nthe"


@pytest.mark.parametrize("kind", ["byte_level", "llama", "gemma"])
def test_stop_strings_end_the_text_where_they_begin(kind):
    """The newline is found at once, though it is a byte that more may follow."""
    tokenizer = KINDS[kind]()
    ids = characters(tokenizer, "one日\n\nmore")
    for stop, read in (("\n", 7), ("\n\n", 8), ("\nm", 9), ("日\n", 7)):
        stream, shown = TextStream(tokenizer, [], (stop,)), ""
        for token in ids[:read]:
            assert not stream.stopped
            shown += stream.push(token)
        assert stream.stopped
        assert shown == "one日\n\nmore"[: "one日\n\nmore".index(stop)]
