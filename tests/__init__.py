"""Tests of CLADA; run them with `make test`."""
