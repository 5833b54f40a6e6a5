"""Text to tokens: the tokenizer and chat templates."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from clada.plugins.errors import CladaError
from clada.runtime.artefact import CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read an artefact's tokenizer."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_NAME))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _special_token(value: Any) -> str | None:
    return value.get("content") if isinstance(value, Mapping) else value


def render_chat(folder: Path, messages: Sequence[Mapping[str, str]]) -> str:
    """Write a conversation as the model expects it, up to where its answer begins.

    Args:
        folder: The artefact's.
        messages: Each with `role` and `content`.

    Raises:
        CladaError: The model has no chat template, or it refuses the messages.
    """
    path = folder / CHAT_TEMPLATE_NAME
    if not path.is_file():
        raise CladaError("this model has no chat template; use `clada run` with a prompt instead")

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    config = json.loads((folder / TOKENIZER_CONFIG_NAME).read_text(encoding="utf-8"))
    special = {name: _special_token(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        template = environment.from_string(path.read_text(encoding="utf-8"))
        return template.render(
            messages=list(messages), add_generation_prompt=True, **{k: v for k, v in special.items() if v}
        )
    except jinja2.TemplateError as error:
        raise CladaError(f"the model's chat template refused the conversation: {error}") from error
