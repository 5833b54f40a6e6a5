"""The emulation of CUDA on small kernels: right ones are computed, wrong ones are found (tests/cuda_emulation)."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

from clada.ops.record import Array
from tests.native.calls import GuardedArrays, rounded
from tests.native.cuda_kernels_c import load_emulated

SAMPLES = os.environ["CLADA_CUDA_SAMPLES_LIBRARY"]
ORDERS = (0, 1, 2, 3)
_library = load_emulated(SAMPLES)


def run(kernel: str, values: Array, order: int = 0) -> tuple[Array, str]:
    """Run a kernel; returns the array that it leaves, and the report of the emulation."""
    memory = GuardedArrays(offset=0)
    data = memory.place(values.astype(np.float32))
    _library.cuda_emulation_order(order)
    with memory.watched():
        error = getattr(_library, f"run_{kernel}")(data.ctypes)
    return data, _library.cudaGetErrorString(error).decode()


def numbers(count: int) -> Array:
    return np.random.default_rng(0).standard_normal(count).astype(np.float32)


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_shared_memory_and_barriers_add_up_a_block(order):
    values = numbers(65)
    data, report = run("block_sum", values, order)
    assert report == "no error"
    assert data[0] == pytest.approx(values[1:].sum(), rel=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_a_ballot_compacts(order):
    values = numbers(32)
    positive = values[values > 0]
    data, report = run("compact", values, order)
    assert report == "no error"
    np.testing.assert_array_equal(data[: len(positive)], positive)


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_within_part_of_a_warp(order):
    values = np.arange(80)
    data, report = run("shuffles", values, order)
    assert report == "no error"
    kinds = data.reshape(5, 16)[1:, 8:]
    np.testing.assert_array_equal(kinds[0], np.full(8, 10))
    np.testing.assert_array_equal(kinds[1], 8 + (np.arange(8) ^ 3))
    np.testing.assert_array_equal(kinds[2], 8 + np.array([0, 1, 2, 0, 1, 2, 3, 4]))
    np.testing.assert_array_equal(kinds[3], 8 + np.array([3, 4, 5, 6, 7, 5, 6, 7]))


@pytest.mark.parametrize("order", ORDERS)
def test_a_ticket_finds_the_last_block(order):
    data, report = run("last_block", np.zeros(7), order)
    assert report == "no error"
    assert data[0] == 5


@pytest.mark.parametrize("order", ORDERS)
def test_syncwarp_orders_the_lanes_of_a_warp_and_halves_are_rounded(order):
    values = numbers(64)
    data, report = run("swap_neighbors", values, order)
    assert report == "no error"
    twice_rounded = rounded(rounded(values, "float16"), "bfloat16")
    np.testing.assert_array_equal(data, twice_rounded.reshape(32, 2)[:, ::-1].ravel())


FOUND = {
    "missing_barrier": r"reads shared element \d+, which (thread .* wrote with no barrier between|nobody has written)",
    "missing_syncwarp": r"reads shared element \d+, which thread \(\d+, 0, 0\) wrote with no barrier between",
    "missing_second_barrier": r"(reads|writes) shared element \d+, which (thread|warp) .* with no barrier between",
    "two_writers": r"writes shared element \d+, which thread \(\d+, 0, 0\) wrote with no barrier between",
    "unwritten_shared": "thread .5, 0, 0. reads shared element 5, which nobody has written",
    "past_shared": "thread .63, 0, 0. asks for shared element 64 of 64",
    "divergent_barrier": r"waits in __syncthreads in divergent_barrier \(.*:\d+\), but thread .* has returned",
    "two_barriers": r"waits in __syncthreads in two_barriers .*, but thread .* is in __syncthreads in two_barriers",
    "exited_lane": r"waits in __shfl_xor_sync with mask ffffffff in exited_lane .*, but thread .3, 0, 0. has returned",
    "lane_at_barrier": r"waits in __shfl_xor_sync .*, but thread .3, 0, 0. is in __syncthreads in lane_at_barrier",
    "not_in_mask": "is not in its own mask, of __shfl_xor_sync with mask ffff in not_in_mask",
    "asks_outside_mask": "asks for lane 20, which is not in the mask, in __shfl_sync with mask ffff",
    "too_many_threads": "invalid configuration",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", FOUND)
def test_what_is_wrong_is_found_and_named(kernel, order):
    values = np.where(np.arange(64) == 7, -1, 1)
    _, report = run(kernel, values, order)
    assert pytest.raises(AssertionError, match=FOUND[kernel]).matches(AssertionError(report)), report
    if report != "invalid configuration":
        assert report.startswith(f"{kernel} ("), report
        assert "samples.cu:" in report
    # The next launch starts afresh.
    assert run("block_sum", numbers(65), order)[1] == "no error"


def test_a_race_of_blocks_shows_in_another_order():
    forward, backward = (run("race_of_blocks", np.zeros(1), order)[0][0] for order in (0, 1))
    assert (forward, backward) == (2, 0)


@pytest.mark.parametrize(
    ("kernel", "size", "found"),
    [
        ("past_the_end", 64, "use-after-poison"),
        ("read_past_the_end", 64, "use-after-poison"),
        ("misaligned_vector", 8, "misaligned address"),
    ],
)
def test_the_sanitizers_stop_what_they_find(kernel, size, found):
    code = f"from tests.native.test_cuda_emulation import *; run({kernel!r}, np.zeros({size}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert found in result.stderr, result.stderr
    assert "samples.cu:" in result.stderr


def test_without_sanitizers_a_write_past_the_end_is_seen_afterwards():
    memory = GuardedArrays(offset=4)
    data = memory.place(np.zeros(3, np.float32))
    with pytest.raises(AssertionError, match="written past the end"), memory.watched():
        memory._tell_sanitizer("__asan_unpoison_memory_region")
        ctypes.memset(data.ctypes.data + 12, 0, 1)
