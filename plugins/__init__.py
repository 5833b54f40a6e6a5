"""Ops of CLADA and everything that executes them; imports neither the exporter nor the runtime."""
