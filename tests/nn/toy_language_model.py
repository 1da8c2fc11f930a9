"""A 12-layer toy language model over hyper-connections whose every sum is exact or in a written order.

Products of matrices are exact: rows are rounded to 20-bit integers under a power of two, so that float64 holds any
sum of theirs, whatever order torch takes. Parameters' gradients are summed sequence by sequence, starting from
``.grad``: that is the order of gradient accumulation, and splitting a batch into micro-batches does not change it.
"""

from __future__ import annotations

import torch
from torch import nn

import kernelforge as kf

BITS = 20


def _grid(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as integers of 20 bits (float64) and their powers of two."""
    x = x.double()
    exponent = torch.frexp(x.abs().amax(-1, keepdim=True))[1]
    return torch.round(torch.ldexp(x, BITS - exponent)), exponent


def exact_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [m, k] b [n, k]^T of rounded rows, float32."""
    (p, p_exponent), (q, q_exponent) = _grid(a), _grid(b)
    return torch.ldexp(p @ q.T, p_exponent + q_exponent.T - 2 * BITS).float()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x)
        ctx.weight = weight
        return torch.stack([exact_matmul(sequence, weight) for sequence in x.float()]).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad, weight = grad.float(), ctx.weight
        total = torch.zeros_like(weight) if weight.grad is None else weight.grad
        for g, sequence in zip(grad, x.float(), strict=True):
            total = total + exact_matmul(g.T, sequence.T)
        weight.grad = total
        return torch.stack([exact_matmul(g, weight.T) for g in grad]).to(x.dtype), None


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)

    def forward(self, x):
        return _Linear.apply(x, self.weight)


def normalized(x):
    """Rows of root mean square one."""
    x = x.double()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)).bfloat16()


class Mix(nn.Module):
    """A token meets the one before it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.out = Linear(hidden, hidden)

    def forward(self, x):
        x = normalized(x)
        before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
        return self.out((x - before) * 0.5)


class Gated(nn.Module):
    """A gated feed-forward block."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (Linear(hidden, hidden) for _ in range(3))

    def forward(self, x):
        x = normalized(x)
        return self.down(torch.relu(self.gate(x)) * self.up(x))


class ToyLanguageModel(nn.Module):
    def __init__(self, layers: int = 12, vocabulary: int = 64, hidden: int = 160, recompute: bool = False) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = Linear(vocabulary, hidden)
        blocks = [kind(hidden) for _ in range(layers) for kind in (Mix, Gated)]
        self.blocks = nn.ModuleList(blocks)
        self.connections = nn.ModuleList(
            kf.nn.HyperConnection(hidden, 4, recompute=recompute and i > 0, accumulate_in_order=True)
            for i in range(len(blocks))
        )
        self.head = kf.nn.HyperHead(hidden, 4, accumulate_in_order=True)
        self.out = Linear(hidden, vocabulary)

    def forward(self, tokens):
        one_hot = nn.functional.one_hot(tokens, self.vocabulary).float()
        x = self.connections[0].expand(self.embedding(one_hot).bfloat16())
        for connection, block in zip(self.connections, self.blocks, strict=True):
            x = connection(x, block)
        return self.out(normalized(self.head(x)).float())


def train(steps: int, threads: int, parts: list[int], layers: int = 12, recompute: bool = False):
    """Losses, and parameters after training on a fixed text; ``parts`` are the micro-batches' sequences."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        model = ToyLanguageModel(layers, recompute=recompute)
        momenta = [torch.zeros_like(p) for p in model.parameters()]
        text = torch.randint(0, 64, (8, 13)).repeat(1, 2)[:, :25]  # each sequence says everything twice
        losses = []
        for step in range(steps):
            batch = text[torch.arange(4) + 4 * (step % 2)]
            model.zero_grad(set_to_none=True)
            first, each = 0, []
            for part in parts:
                sequences = batch[first : first + part]
                scores = torch.log_softmax(model(sequences[:, :-1]).double(), -1)
                picked = scores.gather(-1, sequences[:, 1:, None])[..., 0]
                each += [-sequence.sum().item() for sequence in picked.detach()]
                picked.backward(torch.full_like(picked, -1 / batch[:, 1:].numel()))
                first += part
            losses.append(sum(each) / batch[:, 1:].numel())
            with torch.no_grad():
                for parameter, momentum in zip(model.parameters(), momenta, strict=True):
                    momentum.mul_(0.9).add_(parameter.grad)
                    parameter.sub_(momentum * 0.05)
        return losses, [p.detach().clone() for p in model.parameters()]
    finally:
        torch.set_num_threads(before)
