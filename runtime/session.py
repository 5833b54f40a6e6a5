"""Session of an artifact: prefill, decode, and text."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

from clada.contract.artifact import GENERATION_CONFIG_NAME
from clada.errors import CladaError
from clada.ops.devices import Device, HeldWeights, OrtKernels
from clada.runtime.chat.messages import Message, Tool
from clada.runtime.chat.template import render_chat
from clada.runtime.generation import Choice, Completion, GenerationConfig, Piece, generate, stream
from clada.runtime.loading import Opened, open_model
from clada.runtime.model_settings import default_sampling, end_tokens
from clada.runtime.prefix import Prefix
from clada.runtime.sampling import SamplingConfig
from clada.runtime.steps import Reader


class Session(Reader):
    """Session that runs an artifact on the CPU, or on an NVIDIA GPU.

    An engine runs on the GPU, through TensorRT. Of an ONNX artifact, one text runs on the graph with an in-place cache,
    where there is one; several, on the portable graph. Each is loaded when it is first needed. Both map the same file,
    so weights that are used as they lie are in memory once. What ONNX Runtime and our kernels pack anew (all quantized
    weights, and in float32 those beside the feed-forward networks) is there once a graph, as ONNX Runtime has nothing
    for Python by which sessions share what they pack.

    A session is a context manager: `with Session(path) as session:` gives its memory back at the end, as `close` does.

    Several threads may use one session at the same time, each with texts of its own: calls of `generate`, streams and
    States; on a GPU their steps take turns. A State or a stream is for one thread at a time, which is checked. After
    fork() a session on the CPU loads its graphs again in the child; a State, and what is on a GPU, is for the process
    that made it, which is checked too. ONNX Runtime itself hangs where such a child ends by sys.exit: let it end by
    os._exit, as multiprocessing does.

    A batch gives each text what it would give alone up to rounding, as the two graphs, and batches of different sizes,
    sum in a different order. Logits differ by some 1e-6 of their range in float32, by 1e-3 in float16 and by 1e-2 with
    quantized weights, whose tokens are rounded to 8 bits. So float32 texts agree but for draws at the very border of
    two tokens; in the others some texts go another way where two tokens are nearly as likely as each other, also in
    greedy decoding. The number of threads changes no bit.

    Args:
        model: Path of the ONNX file that `clada-export` wrote, or of the engine that `clada build` made of it, or an
            artifact whose graphs are loaded some other way; the options below are for the first.
        threads: Threads within an op; 0 lets ONNX Runtime choose.
        kernels: Kernels of the sparse ops: "native", our own; "bodies", the function bodies of the file itself, at
            dense speed; "auto", our kernels, and the bodies, with a warning, where those cannot be had.
        weights: Type of the feed-forward weights in our kernels: empty, as the file has them; "bfloat16", a float32
            model's rounded when it is loaded, in half the memory.
        device: "cpu", where None, or "cuda": keys, values, logits, pools and scores stay on the GPU.
        cuda_graph: Whether to capture decode in CUDA graphs: for one text at a time, in one thread, of a float16
            artifact.
        bytes: The share of the weights' bytes that a token is to read, of an artifact exported with a goal of bytes;
            as exported where None, and dense at 1.

    Raises:
        CladaError: The artifact is missing, damaged or not ours, an option has a value that is not known, or the
            artifact cannot be run as asked; when a graph is loaded, its weights are damaged, or ONNX Runtime cannot
            load it, or not on the device.

    Example:
        >>> with Session("out/model.onnx") as session:
        ...     for piece in session.stream("def parse(", GenerationConfig(max_new_tokens=32)):
        ...         print(piece.text, end="")
    """

    def __init__(
        self,
        model: Path | str | Opened,
        *,
        threads: int = 0,
        kernels: OrtKernels = "auto",
        weights: HeldWeights = "",
        device: Device | None = None,
        cuda_graph: bool = False,
        bytes: float | None = None,
    ) -> None:
        if not isinstance(model, Opened):
            model = open_model(Path(model), threads, kernels, weights, device, cuda_graph)
        super().__init__(model, bytes)
        self.folder = self.artifact.folder
        self._generation_config = self.artifact.settings(GENERATION_CONFIG_NAME)
        self.end_tokens = end_tokens(self.artifact, self._generation_config, self.tokenizer)

    def close(self) -> None:
        """Release the graphs, and with them their memory, once no State holds one; the session cannot be used again."""
        self.models.close()

    def __enter__(self) -> "Session":
        self.models.check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def default_sampling(self) -> SamplingConfig:
        """Sampling settings used where a GenerationConfig gives none, read from the model's files.

        Raises:
            CladaError: They ask for what makes no sense.
        """
        return default_sampling(self._generation_config)

    @property
    def kernels(self) -> str:
        """Kernels that run the ops for one text: the native ones and their instruction set, or the function bodies."""
        return self.models.of("single").kernels

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encode a prompt to token ids, begun as the model expects.

        Raises:
            CladaError: The prompt is empty or no text, leaves no room in the model's context, or holds a token that the
                model does not know.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CladaError(f"the prompt holds half a character, {text[error.start]!r}, and is no text") from error
        return self._check_prompt(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _check_prompt(self, ids: Sequence[int]) -> list[int]:
        """Check that a prompt's tokens can be continued, and return them."""
        checked = self.checked(ids, "the prompt")
        if len(checked) >= self.context_length:
            of_engine = self._opened.capacity == self.context_length
            limit = "the engine was built with --capacity" if of_engine else "the model's context is"
            raise CladaError(
                f"the prompt has {len(checked)} tokens; {limit} {self.context_length}, "
                "which must also hold what is generated"
            )
        return checked

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Encode a conversation to token ids, by the model's chat template.

        Args:
            messages: Each with `role` and `content`; an assistant's may have `tool_calls`, and one of the role "tool"
                says what a call gave.
            tools: Functions that the model may call, each as `{"type": "function", "function": {"name": ...,
                "description": ..., "parameters": JSON schema}}`. Nothing calls them: the model writes its call.
            template_args: Arguments that the model's own template reads, by name, as `{"enable_thinking": False}`.

        Raises:
            CladaError: The model has no chat template, or it refuses the messages, or would not read the tools or an
                argument; as of `encode`.
        """
        text = render_chat(self.artifact, messages, tools=tools, template_args=template_args)
        return self.encode(text, add_special_tokens=False)

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        config: GenerationConfig | None = None,
    ) -> list[Completion]:
        """Complete prompts as one batch; each comes out as it would alone, up to rounding (see Session).

        Args:
            prompts: A text or several, or the token ids of one or of several.
            config: When to stop and how to choose; the defaults where None.

        Raises:
            CladaError: A prompt is neither text nor token ids; as of `encode` and `prefill`.
        """
        one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral))
        each: Sequence[Any] = [prompts] if one else prompts
        ids = [self._prompt_ids(prompt) for prompt in each]
        config = config or GenerationConfig()
        return generate(self, self._choice(config), ids, config) if ids else []

    def stream(
        self, prompt: str | Sequence[int], config: GenerationConfig | None = None, prefix: Prefix | None = None
    ) -> Iterator[Piece]:
        """Complete one prompt, given as text or token ids, piece by piece.

        Args:
            prompt: The prompt.
            config: When to stop and how to choose; the defaults where None.
            prefix: What the session read for it before: of a prompt that begins as that one, the rest alone is read.
                Where neurons are skipped, and on a GPU, all of it is.

        Raises:
            CladaError: As of `generate`.
        """
        config = config or GenerationConfig()
        return stream(self, self._choice(config), self._prompt_ids(prompt), config, prefix)

    def _choice(self, config: GenerationConfig) -> Choice:
        return Choice(config.sampling or self.default_sampling, self.end_tokens)

    def _prompt_ids(self, prompt: Any) -> list[int]:
        return self.encode(prompt) if isinstance(prompt, str) else self._check_prompt(prompt)
