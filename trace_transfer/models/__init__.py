"""What a directory, a GGUF file or a hub name is; weights in and out, a tensor at a time."""
