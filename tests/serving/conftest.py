import pytest

from tests.serving.common import World, live, write_model


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> World:
    return World(write_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def url(home):
    """A server that many tests of a module ask."""
    with live(home.service()) as address:
        yield address
