"""What calls the TensorRT plugins in tests."""
