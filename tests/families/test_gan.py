import jax
import numpy as np
import pytest
from setups import make_key, make_setup

from deeplearn.families import gan
from deeplearn.layers.kernel_distance import features, kernel_distance


@pytest.fixture(scope="module")
def small():
    return make_setup(gan, gan.config(2))


def blobs(n, seed, shift=0.0):
    """Images of one soft disc each at a random place: real enough to tell apart from noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:28, :28]
    centre = rng.normal(13.5 + shift, 2, size=(n, 2, 1, 1))
    image = 2 * np.exp(-((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2) / 30) - 1
    return image[..., None].astype(np.float32)


def test_objectives_train_disjoint_parameters_that_are_all_of_them(small):
    first, second = gan.objectives(small.config)
    assert not set(first.trains) & set(second.trains)
    assert {*first.trains, *second.trains} == small.variables["params"].keys()


def test_discriminator_loss_is_softplus_of_both_sides_and_r1(small):
    """The slope is taken for one image at a time here, and for the whole batch at once in the loss."""
    discriminate, _ = gan.objectives(small.config)
    value, aux = jax.device_get(jax.jit(lambda v, b, k: discriminate.loss(v, b, k, True))(*small[2:]))

    def parts(variables, image, key):
        params = {"params": variables["params"]["discriminator"]}
        logit = lambda x: gan.Discriminator(small.config).apply(params, x)  # noqa: E731
        slope = jax.vmap(jax.grad(lambda x: logit(x[None])[0]))(image)
        return logit(image), logit(gan.sample(small.config, variables, key, len(image))), slope

    real_B, fake_B, slope = jax.device_get(jax.jit(parts)(small.variables, small.batch["image"], small.key))
    r1 = (slope**2).sum() / len(slope)
    expected = np.logaddexp(0, -real_B).mean() + np.logaddexp(0, fake_B).mean() + 0.5 * small.config.r1 * r1
    np.testing.assert_allclose([value, aux.metrics["r1"]], [expected, r1], rtol=1e-5)


def test_distance_is_near_zero_for_one_distribution_and_grows_with_the_difference():
    distance = jax.jit(lambda x, y: kernel_distance(features(x), features(y)))
    real = jax.device_put(blobs(256, 0))
    rng = np.random.default_rng(1)
    noise = rng.uniform(-1, 1, (256, 28, 28, 1)).astype(np.float32)
    shifts = {"same": 0.0, "shifted": 1.0, "far": 4.0}
    others = {name: blobs(256, 2, shift) for name, shift in shifts.items()} | {"noise": noise}
    d = {name: float(jax.device_get(distance(real, jax.device_put(other)))) for name, other in others.items()}
    assert abs(d["same"]) < 0.1 * d["shifted"], d
    assert 0 < d["shifted"] < d["far"] < d["noise"], d


def test_distance_is_unbiased():
    """Over many small sets of one distribution the mean is 0 within its error; the biased estimate would not be."""
    x = jax.device_put(np.random.default_rng(0).normal(size=(400, 2, 8, 3)).astype(np.float32))
    values = jax.device_get(jax.jit(jax.vmap(lambda pair: kernel_distance(pair[0], pair[1])))(x))
    assert abs(values.mean()) < 3 * values.std() / 20
    assert values.min() < 0 < values.max()


def test_evaluate_weighs_the_distance_by_the_number_of_images(small):
    evaluate = jax.jit(lambda v, b, k: gan.evaluate(small.config, v, b, k))
    total, weight = jax.device_get(evaluate(*small[2:]))
    fake = jax.jit(lambda v, k: gan.sample(small.config, v, k, 4))(small.variables, small.key)
    distance = jax.jit(lambda x, y: kernel_distance(features(x), features(y)))(small.batch["image"], fake)
    assert weight == 4
    np.testing.assert_allclose(total / weight, jax.device_get(distance), rtol=1e-4)


def test_samples_are_images_that_depend_on_the_key_alone(small):
    sample = jax.jit(lambda v, k: gan.sample(small.config, v, k, 5))
    a, again, other = (jax.device_get(sample(small.variables, k)) for k in (small.key, small.key, make_key(1)))
    assert a.shape == (5, 28, 28, 1) and np.abs(a).max() <= 1
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - other).max() > 1e-3
