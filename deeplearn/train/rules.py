"""Published rules for the learning rate and the batch of language models under AdamW, as they were fitted.

They are power laws of other people's models (tens of millions to billions of parameters, tokens of tens of thousands of
kinds), and tell where to look, not what to take. Batches are in tokens; rates are the schedule's peak, of all
parameters alike and thus without muP (`transfer.py`).
"""


def step_law_batch(tokens: float) -> float:
    """Best batch, in tokens, for a run of so many tokens, at any size: the Step Law, Li et al. 2025 (arXiv 2503.04715),
    from models of 60 M to 1 G parameters without embeddings. That it follows the data and not the size is also what
    Zhang et al. 2024 (arXiv 2410.21676) and Bergsma et al. 2025 (arXiv 2505.13738) found of the critical batch."""
    return 0.58 * tokens**0.571


def step_law_rate(params: float, tokens: float) -> float:
    """Best peak rate for N parameters without embeddings on D tokens, with the best batch: the Step Law, as above."""
    return 1.79 * params**-0.713 * tokens**0.307


def deepseek_batch(flops: float) -> float:
    """Batch, in tokens, of compute-optimal runs within .25 % of the best loss: DeepSeek LLM 2024 (arXiv 2401.02954)."""
    return 0.2920 * flops**0.3271


def deepseek_rate(flops: float) -> float:
    """Peak rate of compute-optimal runs with that batch: DeepSeek LLM 2024, as above."""
    return 0.3118 * flops**-0.1250
