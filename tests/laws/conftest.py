from collections.abc import Iterator

import jax
import pytest
from synthetic import DATA, drop_highest, grid

from deeplearn import laws


@pytest.fixture(scope="module", autouse=True)
def optimised() -> Iterator[None]:
    """Fits run longer than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def chinchilla() -> laws.Table:
    """The 240 runs that Besiroglu et al. fit: the five highest losses are left out."""
    return drop_highest(laws.read_csv(DATA / "chinchilla.csv"), 5)


@pytest.fixture(scope="session")
def small_fit() -> laws.Fit:
    return laws.fit(grid())
