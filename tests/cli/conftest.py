import pytest


@pytest.fixture(autouse=True)
def no_compilation_cache_of_the_user(monkeypatch):
    """Verbs that run inside the tests leave the environment, and so every process they start, as it was."""
    monkeypatch.setenv("RRM_COMPILATION_CACHE", "off")
