"""Show what a trained run makes: python -m experiments.sample --workdir=DIR [--prompt=TEXT]

DIR is what experiments.train or a unit of a sweep wrote (runs/NAME/units/ID). A language model continues --prompt and
prints the text; a family of images writes a grid to DIR/samples.png. For example

    python -m experiments.sample --workdir=runs/transformer --prompt="KING. " --temperature=0.5
    python -m experiments.sample --workdir=runs/gan --length=64
"""

from pathlib import Path

from absl import flags

from deeplearn.config import ConfigError
from deeplearn.sweep import ledger
from experiments import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_PROMPT = flags.DEFINE_string("prompt", "KING. ", "Text that a language model goes on from.")
_LENGTH = flags.DEFINE_integer("length", 400, "Bytes of text to add, or number of images.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Below 1: more probable text.", 1e-3)
_SEED = flags.DEFINE_integer("seed", 0, "Another seed, another sample.", 0)


def main(argv: list[str]) -> int:
    del argv
    if _WORKDIR.value is None:
        raise ConfigError("of which run? pass --workdir=DIR")
    workdir = Path(_WORKDIR.value)
    config = ledger.read_json(workdir / "config.json")
    if config is None or "family" not in config:
        units = sorted(workdir.glob("units/*"))
        hint = f"; it is a sweep, and its runs are in folders such as {units[0]}" if units else ""
        raise ConfigError(f"{workdir} holds no run: config.json is not there, or damaged{hint}")
    if not (workdir / "checkpoints").is_dir():
        raise ConfigError(f"{workdir} has no checkpoint yet")
    import jax
    import numpy as np

    from deeplearn import families
    from deeplearn.train import loop
    from deeplearn.train.run import from_json

    run = from_json(config)
    family = families.get(run.family)
    if not hasattr(family, "sample"):
        raise ConfigError(f"family {run.family!r} has nothing to sample")
    step, variables = loop.load_variables(run, workdir)
    print(f"{run.family} {run.size} after {step} of {run.steps} updates")
    key = jax.random.key(_SEED.value)
    if run.data.seq_len:
        prompt_1xL = np.frombuffer(_PROMPT.value.encode() or b"\n", np.uint8).astype(np.int32)[None]
        tokens = family.sample(run.model, variables, key, prompt_1xL, _LENGTH.value, _TEMPERATURE.value)
        print(bytes(np.asarray(tokens[0], np.uint8)).decode(errors="replace"))
    else:
        images_NxHxWxC = np.asarray(family.sample(run.model, variables, key, _LENGTH.value))
        print(f"samples: {_grid(images_NxHxWxC, workdir / 'samples.png')}")
    return 0


def _grid(images_NxHxWxC, path: Path) -> Path:
    """Write images with values in [-1, 1] as one picture, about as wide as high."""
    import numpy as np
    from PIL import Image

    count, height, width, channels = images_NxHxWxC.shape
    columns = int(np.ceil(count**0.5))
    rows = -(-count // columns)
    padded = np.concatenate([images_NxHxWxC, np.full((rows * columns - count, height, width, channels), -1.0)])
    grid = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    pixels = np.clip((grid + 1) * 127.5, 0, 255).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
    return path


if __name__ == "__main__":
    cli.run(main)
