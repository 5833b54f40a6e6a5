"""Tests of the op records and of every backend."""
