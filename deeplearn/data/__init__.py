"""Real data by name: `Data`, `train_iterator`, `eval_batches`, `train_examples`."""

from deeplearn.data.pipeline import Data, eval_batches, train_examples, train_iterator

__all__ = ["Data", "eval_batches", "train_examples", "train_iterator"]
