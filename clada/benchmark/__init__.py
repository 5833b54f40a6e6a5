"""Benchmark of the ops and of whole models against their rivals, in one process; nothing imports it."""
