"""The yardstick of `make bench`: the decoder of `deeplearn.families.transformer` in plain PyTorch.

Same shape, same work: byte vocabulary, pre-RMSNorm, rotary positions, causal attention, GELU MLP of four times the
width, untied head, AdamW in float32. It is written as a careful PyTorch user would write it (fused projections,
`scaled_dot_product_attention`, the fused AdamW kernel), so that the ratio flatters nobody. Nothing of the library
imports this file; it needs the optional extra `torch`.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


def rotate(x_BxHxLxK: torch.Tensor, cos_LxK: torch.Tensor, sin_LxK: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (Su et al., 2021), halves convention."""
    left, right = x_BxHxLxK.chunk(2, dim=-1)
    return x_BxHxLxK * cos_LxK + torch.cat((-right, left), dim=-1) * sin_LxK


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.mlp_norm = nn.RMSNorm(d)
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x_BxLxD: torch.Tensor, cos_LxK: torch.Tensor, sin_LxK: torch.Tensor) -> torch.Tensor:
        B, L, D = x_BxLxD.shape
        qkv = self.qkv(self.attention_norm(x_BxLxD)).view(B, L, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos_LxK, sin_LxK), rotate(k, cos_LxK, sin_LxK)
        y_BxHxLxK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BxLxD = x_BxLxD + self.out(y_BxHxLxK.transpose(1, 2).reshape(B, L, D))
        return x_BxLxD + self.down(F.gelu(self.up(self.mlp_norm(x_BxLxD)), approximate="tanh"))


class Decoder(nn.Module):
    """A byte-level decoder; called with tokens int64 [B, L], gives logits [B, L, vocabulary]."""

    def __init__(self, d: int, layers: int, heads: int, length: int = 128, vocabulary: int = 256):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        half = d // heads // 2
        angles_LxK = torch.outer(torch.arange(length), 10_000.0 ** (-torch.arange(half) / half)).repeat(1, 2)
        self.register_buffer("cos_LxK", angles_LxK.cos())
        self.register_buffer("sin_LxK", angles_LxK.sin())

    def forward(self, tokens_BxL: torch.Tensor) -> torch.Tensor:
        x_BxLxD = self.embedding(tokens_BxL)
        for block in self.blocks:
            x_BxLxD = block(x_BxLxD, self.cos_LxK, self.sin_LxK)
        return self.head(self.norm(x_BxLxD))


class Trainer:
    """One training step after another: `Trainer(d, layers, heads).step(tokens)`.

    Threads: the caller sets them (`torch.set_num_threads(2)`), since they belong to the process.
    """

    def __init__(self, d: int, layers: int, heads: int, learning_rate: float = 1e-3, seed: int = 0):
        torch.manual_seed(seed)
        self.model = Decoder(d, layers, heads)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )

    def step(self, tokens_BxL: torch.Tensor) -> torch.Tensor:
        """One AdamW step on tokens int64 [B, L + 1]; the mean next-byte loss in nats, a scalar."""
        inputs_BxL, targets_BxL = tokens_BxL[:, :-1], tokens_BxL[:, 1:]
        logits_BxLxV = self.model(inputs_BxL)
        loss = F.cross_entropy(logits_BxLxV.flatten(0, 1), targets_BxL.flatten())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach()
