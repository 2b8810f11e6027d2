import pytest

from cache import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "cache").open() as opened:
        yield opened
