"""What calibration text tells: which bytes matter, by price or by neuron, and what load and probes are worth."""
