import pytest
from setups import Setup, make_setup

from deeplearn import families


@pytest.fixture(scope="session", params=families.names())
def setup(request) -> Setup:
    """Each family in turn, at its smallest size, with variables and a random batch."""
    family = families.get(request.param)
    return make_setup(family, family.config(family.SIZES[0]))
