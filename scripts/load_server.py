"""Loads `clada serve` with clients that ask at once, and reports what they waited for and what memory the server took.

Usage: load_server.py PATH [--clients N] [--seconds S] [--tokens N] [OPTION OF clada serve ...]

Each client asks again as soon as it has an answer. One request in eight is given up half-way. A request is lost where
its stream ends with neither a reason nor an error.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openai

SYSTEM = "import json\n\nclass Reader:\n    def read(self, name):\n        return json.loads(self.open(name))\n\n"
QUESTIONS = ("def add(a, b):", "class Writer:", "for line in lines:", "with open(path) as file:", "raise ValueError(")
_GIVEN_UP = 1 / 8
_SETTLED = 1 / 3  # of the time: what the server loads and keeps is there by then
_RETRY_SECONDS = 0.2
_PATIENCE = 300.0


@dataclass
class Load:
    """Outcome of a load.

    Args:
        first: Seconds from each request to its first token.
        answered: Requests that were answered to their end.
        given_up: Requests that the client gave up.
        refused: Requests for which there was no place (429); they are asked again.
        failed: Errors of other kinds, by their text.
        lost: Requests that ended with neither a reason nor an error.
        tokens: Tokens that came.
        seconds: Time that it took.
        memory: Megabytes that the server held once it had settled, and at the end.
    """

    first: list[float] = field(default_factory=list)
    answered: int = 0
    given_up: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    lost: int = 0
    tokens: int = 0
    seconds: float = 0.0
    memory: tuple[float, float] = (0.0, 0.0)

    def text(self) -> str:
        """Report, a line each."""
        half, most = np.percentile(self.first, [50, 99]) if self.first else (float("nan"), float("nan"))
        return "\n".join(
            [
                f"requests: {self.answered} answered, {self.given_up} given up, {self.refused} refused (429), "
                f"{len(self.failed)} failed, {self.lost} lost",
                f"first token: p50 {half:.3f} s, p99 {most:.3f} s",
                f"tokens: {self.tokens} in {self.seconds:.1f} s, {self.tokens / self.seconds:.1f} a second",
                f"memory: {self.memory[0]:.0f} MB settled, {self.memory[1]:.0f} MB at the end",
                *sorted(set(self.failed)),
            ]
        )


@contextlib.contextmanager
def serving(path: Path, options: list[str]) -> Iterator[tuple[str, int]]:
    """Serve a model in a process of its own; gives the address and the process, which must end well on SIGTERM."""
    command = [sys.executable, "-m", "clada", "serve", str(path), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise SystemExit("error: the server did not start")
            yield line.split()[-1], server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
    if code:
        raise SystemExit(f"error: the server ended with code {code}")


def memory_of(process: int) -> float:
    """Resident memory of a process in MB."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


async def _ask(client: openai.AsyncOpenAI, model: str, tokens: int, source: random.Random, load: Load) -> None:
    gives_up = source.random() < _GIVEN_UP
    begun, finish = time.monotonic(), None
    came = 0
    stream = await client.completions.create(
        model=model,
        prompt=SYSTEM + source.choice(QUESTIONS),
        max_tokens=source.randint(1, tokens),
        temperature=1.0,
        seed=source.randrange(1 << 30),
        stream=True,
    )
    async with stream:
        async for chunk in stream:
            if not came:
                load.first.append(time.monotonic() - begun)
            came += 1
            load.tokens += 1
            finish = chunk.choices[0].finish_reason
            if gives_up and came > 2:
                load.given_up += 1
                return
    load.answered += finish is not None
    load.lost += finish is None


async def _ask_and_count(
    client: openai.AsyncOpenAI, model: str, tokens: int, source: random.Random, load: Load
) -> None:
    try:
        await _ask(client, model, tokens, source, load)
    except openai.RateLimitError:
        load.refused += 1
        await asyncio.sleep(_RETRY_SECONDS)
    except openai.OpenAIError as error:
        load.failed.append(f"{type(error).__name__}: {error}")


async def _client(client: openai.AsyncOpenAI, model: str, tokens: int, until: float, seed: int, load: Load) -> None:
    source = random.Random(seed)
    while time.monotonic() < until:
        await _ask_and_count(client, model, tokens, source, load)


async def run(address: str, process: int, clients: int, seconds: float, tokens: int) -> Load:
    """Load a server.

    Args:
        address: Of the server.
        process: The server's process.
        clients: Clients that ask at once.
        seconds: Time that they go on asking.
        tokens: The most tokens of an answer.
    """
    load = Load()
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=_PATIENCE) as client:
        model = (await client.models.list()).data[0].id
        begun = time.monotonic()
        until = begun + seconds
        asking = [asyncio.create_task(_client(client, model, tokens, until, n, load)) for n in range(clients)]
        await asyncio.sleep(seconds * _SETTLED)
        settled = memory_of(process)
        await asyncio.gather(*asking)
    load.seconds, load.memory = time.monotonic() - begun, (settled, memory_of(process))
    return load


def main() -> int:
    parser = argparse.ArgumentParser(description="Load `clada serve`; other options are handed on to it.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--tokens", type=int, default=64)
    args, options = parser.parse_known_args()
    with serving(args.path, options) as (address, process):
        load = asyncio.run(run(address, process, args.clients, args.seconds, args.tokens))
    print(load.text())
    return 1 if load.lost or load.failed else 0


if __name__ == "__main__":
    sys.exit(main())
