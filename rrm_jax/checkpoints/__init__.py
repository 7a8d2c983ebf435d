"""Model directories: Hugging Face safetensors and parameters, checkpoints, the state of training runs."""
