"""`python -m rrm_jax`: the same as `rrm`."""

from rrm_jax.cli.main import app

if __name__ == "__main__":
    app()
