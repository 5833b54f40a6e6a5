"""Support code that calls the TensorRT plugins in tests."""
