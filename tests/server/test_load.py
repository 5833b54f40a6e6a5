"""Many clients at once: none is lost without an error, and memory stays as it is."""

import asyncio

import pytest

from tests.project.test_scripts import load_script

# The ten minutes of scripts/load_server.py, in short.
CLIENTS, SECONDS, TOKENS = 64, 6, 12
# Megabytes: of what allocators keep, not of what requests leave.
GROWTH = 60


@pytest.mark.fault("server", "64 clients at once, some of which go away", now="each gets an answer or an error")
def test_no_request_is_lost(chat_artifact):
    script = load_script("load_server")
    options = ["--threads", "1", "--slots", "8", "--queue", "40", "--prefix-tokens", "512"]
    with script.serving(chat_artifact, options) as (address, process):
        load = asyncio.run(script.run(address, process, CLIENTS, SECONDS, TOKENS))
    assert load.failed == []
    assert load.lost == 0
    assert load.answered > CLIENTS
    assert load.given_up > 0
    assert load.refused > 0  # there are places for 48
    assert load.memory[1] - load.memory[0] < GROWTH
