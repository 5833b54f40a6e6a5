"""Calibration on text: the worth of bytes, by price or by neuron, and the gain of load and probes."""
