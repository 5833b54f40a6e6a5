"""Adapter of an artifact to lm-eval: scored tokens are read in decode, token by token, where the model is sparse."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from clada.contract.artifact import CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from clada.contract.typed_json import plain
from clada.errors import CladaError
from clada.evaluation.settings import LM_EVAL_MODEL
from clada.ops.devices import Device, HeldWeights, OrtKernels
from clada.runtime import GenerationConfig, SamplingConfig, Session
from clada.runtime.chat.template import render_chat
from clada.runtime.find_model import find_model
from clada.runtime.steps import State

# Of a context, so many tokens at its end are read in decode too, or half of it if it is short: the prefill, which is
# dense, would otherwise predict the continuation's first token, which is often all there is.
DECODED_CONTEXT = 32
# What lm-eval's own models generate where a task does not say.
_DEFAULT_NEW_TOKENS = 256
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")

Floats = npt.NDArray[np.float64]
# Context and continuation as text, where they are to be cached, and as tokens.
Request = tuple[tuple[str, str] | None, list[int], list[int]]

# A child of lm-eval's logger: its handler and level apply.
_logger = logging.getLogger("lm_eval.clada")


def generation_config(arguments: Mapping[str, Any]) -> GenerationConfig:
    """Translate the arguments of a `generate_until` request.

    Raises:
        CladaError: An argument is not known, or has a value that cannot be used.
    """
    given = dict(normalize_gen_kwargs(dict(arguments), _DEFAULT_NEW_TOKENS))
    until, longest = given.pop("until"), given.pop("max_gen_toks")
    given.pop("do_sample")  # the temperature is 0 where it is false
    sampling = {name: given.pop(name) for name in _SAMPLING if name in given}
    unknown = [f"{name}={value}" for name, value in given.items() if (name, value) != ("num_beams", 1)]
    if unknown:
        known = ", ".join(("until", "max_gen_toks", "do_sample", *_SAMPLING))
        raise CladaError(f"the generation arguments hold {', '.join(unknown)}; known are {known}")
    # lm-eval seeds `random` by its --seed; a request that is repeated is sampled anew.
    return GenerationConfig(
        longest, tuple(filter(None, until)), SamplingConfig(**sampling, seed=random.getrandbits(32))
    )


def _log_probabilities(logits: npt.NDArray[Any]) -> Floats:
    """Log-probabilities f64[V] of logits T[V], in memory of its own."""
    z = logits.astype(np.float64)
    if np.isnan(z).any():
        raise CladaError("the model's logits are NaN: the weights or the dtype do not hold the activations")
    return z - np.logaddexp.reduce(z)


def _special_token(session: Session, name: str) -> str | None:
    """Token that the tokenizer's configuration gives under a name such as "bos_token", if there is one."""
    config = session.artifact.settings(TOKENIZER_CONFIG_NAME)
    value = config.get(name)
    return value["content"] if isinstance(value, dict) else value


@register_model(LM_EVAL_MODEL)
class CladaLM(TemplateLM):  # type: ignore[misc] # lm-eval has no types
    """An artifact, run on the CPU, one text at a time; tokens and windows are those of lm-eval's `hf` model.

    Log-likelihoods are those of decode: a context is read by the dense prefill but for its last tokens
    (DECODED_CONTEXT), and what follows one token at a time, as when the model generates it. Only a context of one
    token, as at the beginning of a rolling window, leaves its next token to the prefill, which cannot be shorter.

    Args:
        model: Path of the ONNX file that `clada-export` wrote, or of its folder.
        threads: See Session, as are the following.
        kernels: See Session.
        weights: See Session.
        batch_size: Of lm-eval's command line; only 1 has an effect.
        max_batch_size: Of lm-eval's command line; without effect.
        device: Of lm-eval's command line, which names a GPU where it is not given one; without effect.
        unknown: Anything else, which is refused.

    Raises:
        CladaError: The artifact cannot be used, or an argument is not known or has a value that is not.

    Example:
        >>> lm_eval.simple_evaluate(CladaLM("out/model.onnx"), tasks=["lambada_openai"], limit=10)
    """

    def __init__(
        self,
        model: str = "",
        threads: int = 0,
        kernels: OrtKernels = "auto",
        weights: HeldWeights = "",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: Device | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise CladaError(f"model_args hold {', '.join(unknown)}; known are model, threads, kernels, weights")
        if not model:
            raise CladaError("model_args name no model: --model_args model=PATH, the artifact's .onnx file")
        if batch_size not in (None, 1, "1") or max_batch_size is not None:
            _logger.warning("texts are read one at a time: the batch size has no effect")
        self.session = Session(find_model(Path(model)), threads=threads, kernels=kernels, weights=weights)
        self._begin = _special_token(self.session, "bos_token")
        self._end = _special_token(self.session, "eos_token")
        self._active: list[float] = []
        self._read: list[float] = []

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a text."""
        return self.session.context_length

    def _token_id(self, token: str | None) -> int | None:
        return None if token is None else self.session.tokenizer.token_to_id(token)

    @property
    def eot_token_id(self) -> int | None:
        """Token that ends a text."""
        return self._token_id(self._end)

    @property
    def prefix_token_id(self) -> int:
        """Token put before a text that has nothing before it.

        Raises:
            CladaError: The tokenizer has none that could.
        """
        for token in (self._token_id(self._begin), self._token_id(self._end)):
            if token is not None:
                return token
        raise CladaError("a text without context needs a token to begin with; the tokenizer names no bos or eos token")

    @property
    def tokenizer_name(self) -> str:
        """Key by which lm-eval's cache of requests distinguishes tokenizers and chat templates."""
        files = self.session.manifest.files
        return f"clada-{files[TOKENIZER_NAME][:16]}-{files.get(CHAT_TEMPLATE_NAME, '')[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; begun as the model expects, once, unless special tokens are requested or refused."""
        if add_special_tokens is None:
            add_special_tokens = self._begin is None or not string.startswith(self._begin)
        return list(self.session.tokenizer.encode(string, add_special_tokens=add_special_tokens).ids)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Chat template of the model, for the record; None where it is not applied or there is none."""
        template = self.session.artifact.content(CHAT_TEMPLATE_NAME)
        return template.decode() if chat_template and template is not None else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as the model expects it, up to where its answer begins.

        Args:
            chat_history: Each with `role` and `content`.
            add_generation_prompt: False where the last message is the beginning of the answer.

        Raises:
            CladaError: The model has no chat template, or it refuses the messages.
        """
        if add_generation_prompt:
            return render_chat(self.session.artifact, chat_history)
        *before, answer = chat_history
        return render_chat(self.session.artifact, before) + answer["content"]

    def _decode(self, state: State, token: int) -> None:
        (stats,) = self.session.decode(state, [token])
        self._read.append(stats.read_fraction)
        self._active.append(stats.active_fraction)

    def _report(self) -> None:
        """Log the share that was actually computed; a target may be missed."""
        if self._active:
            share = np.mean(self._active)
            _logger.info("%d tokens were read in decode, with %.1f%% of neurons active", len(self._active), 100 * share)

    def _predictions(self, context: Sequence[int], continuation: Sequence[int]) -> Iterator[Floats]:
        """Log-probabilities f64[V] of the token after the context, then after each token of a continuation."""
        prompt = len(context) - min(DECODED_CONTEXT, len(context) // 2)
        state = self.session.prefill([context[:prompt]])
        for token in context[prompt:]:
            self._decode(state, token)
        yield _log_probabilities(state.logits[0])
        for token in continuation:
            self._decode(state, token)
            yield _log_probabilities(state.logits[0])

    def _scores(
        self, context: Sequence[int], shared: Sequence[int], last_tokens: Sequence[int]
    ) -> list[tuple[float, bool]]:
        """Score continuations that differ only in their last tokens: log-likelihood, and whether greedy gives it."""
        predictions = self._predictions(context, shared)
        total, greedy = 0.0, True
        for token, prediction in zip(shared, predictions, strict=False):
            total += prediction[token]
            greedy = greedy and int(prediction.argmax()) == token
        last = next(predictions)
        likeliest = int(last.argmax())
        return [(float(total + last[token]), greedy and likeliest == token) for token in last_tokens]

    def _warn_of_cuts(self, lengths: Sequence[int], rooms: Sequence[int]) -> None:
        """Warn of contexts that have more tokens than there is room for."""
        cut = sum(length > room for length, room in zip(lengths, rooms, strict=True))
        if cut:
            _logger.warning(
                "%d of %d contexts are cut on the left: with what follows they exceed the model's context of %d tokens",
                cut,
                len(lengths),
                self.max_length,
            )

    def _loglikelihood_tokens(
        self,
        requests: list[Request],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, in nats, and whether greedy decoding gives it.

        Raises:
            CladaError: A continuation is empty, or longer than the model's context.
        """
        for _strings, _context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise CladaError(
                    f"a continuation has {len(continuation)} tokens; it must have from 1 to the {self.max_length} "
                    "of the model's context"
                )
        rooms = [self.max_length + 1 - len(continuation) for _strings, _context, continuation in requests]
        self._warn_of_cuts([len(context) for _strings, context, _continuation in requests], rooms)
        # What differs in its last token only, as the choices of many tasks do, is read once.
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for index, ((_strings, context, continuation), room) in enumerate(zip(requests, rooms, strict=True)):
            groups.setdefault((tuple(context[-room:]), tuple(continuation[:-1])), []).append(index)
        answers = [(0.0, False)] * len(requests)
        progress = tqdm(total=len(requests), desc="Scoring in decode", disable=disable_tqdm)
        for (kept, shared), members in groups.items():
            scores = self._scores(kept, shared, [requests[index][2][-1] for index in members])
            for index, score in zip(members, scores, strict=True):
                answers[index] = score
                strings = requests[index][0]
                if strings is not None:
                    self.cache_hook.add_partial("loglikelihood", strings, score)
            progress.update(len(members))
        progress.close()
        self._report()
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in nats, window by window where they exceed the model's context."""
        owners: list[int] = []
        windows: list[Request] = []
        for index, (text,) in enumerate(request.args for request in requests):
            pairs = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, pairs):
                owners.append(index)
                windows.append((None, context, continuation))
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts until a stop string, the model's end or the maximum number of tokens.

        Raises:
            CladaError: A generation argument cannot be used, or asks for more than the model's context holds.
        """
        configs = [generation_config(request.args[1]) for request in requests]
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        lengths = [config.max_new_tokens or 0 for config in configs]
        longest = max(lengths, default=0)
        if longest >= self.max_length:
            raise CladaError(
                f"max_gen_toks is {longest}; the model's context of {self.max_length} must hold it and a prompt: "
                "give fewer by --gen_kwargs max_gen_toks=N"
            )
        rooms = [self.max_length - length for length in lengths]
        self._warn_of_cuts([len(prompt) for prompt in prompts], rooms)
        texts = []
        work = zip(requests, prompts, rooms, configs, strict=True)
        for request, prompt, room, config in tqdm(work, "Generating", len(requests), disable=disable_tqdm):
            pieces = list(self.session.stream(prompt[-room:], config))
            stats = [piece.stats for piece in pieces if piece.stats is not None]
            self._active += [token.active_fraction for token in stats]
            self._read += [token.read_fraction for token in stats]
            texts.append("".join(piece.text for piece in pieces))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        self._report()
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """Metadata that lm-eval writes beside the results: the policy, and the measured cost of decoding."""
        return {
            "policy": plain(self.session.manifest.policy),
            "kernels": self.session.kernels,
            "decoded_tokens": len(self._active),
            "active_fraction": float(np.mean(self._active)) if self._active else None,
            "read_fraction": float(np.mean(self._read)) if self._read else None,
        }
