import pytest

from made_commands import RECIPE, write_data


@pytest.fixture
def place(tmp_path, made_path):
    """A folder with own copies of data and recipe, and what a train command needs."""
    write_data(tmp_path / "data")
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path
