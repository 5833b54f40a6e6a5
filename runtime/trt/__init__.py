"""TensorRT and TensorRT for RTX: engines that are loaded and run."""
