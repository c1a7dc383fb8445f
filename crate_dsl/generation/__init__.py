"""Text that a trained network goes on with: one sampler, torch and onnxruntime, with a cache or without."""
