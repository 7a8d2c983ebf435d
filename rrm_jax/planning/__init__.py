"""What a training run will take on devices that are not here: memory, exchanges, seconds; before anything is run."""
