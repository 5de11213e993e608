"""Where tensors come from and go to: checkpoints in the safetensors container, one tensor at a time."""
