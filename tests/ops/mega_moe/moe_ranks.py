"""What the ranks of the multi-process tests do."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kernelforge as kf
from kernelforge.nn import MoE, MXFP4Experts
from kernelforge.ops.mega_moe.parallel import session as sessions
from kernelforge.ops.mega_moe.parallel.accelerator import AcceleratorTransport
from kernelforge.ops.mega_moe.parallel.agree import Agreeing
from kernelforge.ops.mega_moe.parallel.gradient import backward
from kernelforge.ops.mega_moe.parallel.headed import CheckedTransport, Link
from kernelforge.ops.mega_moe.parallel.layer import Experts, Tokens, forward
from kernelforge.ops.mega_moe.parallel.program import execute
from kernelforge.ops.mega_moe.parallel.waves import WavePlan
from kernelforge.ops.mega_moe.schedule import program

Arrays = tuple[Any, ...]


def shard(weights: Arrays, rank: int, size: int) -> list[torch.Tensor]:
    """This rank's experts of all experts' weights."""
    each = weights[0].shape[0] // size
    return [torch.from_numpy(array[rank * each : (rank + 1) * each].copy()) for array in weights]


def tokens_of(tokens: Arrays, shares: list[list[int]], rank: int) -> Tokens:
    """This rank's tokens; x is given as bits."""
    x, topk_idx, topk_weight = (torch.from_numpy(array[shares[rank]].copy()) for array in tokens)
    return Tokens(x.view(torch.bfloat16), topk_idx, topk_weight)


def run_layer(group, weights, tokens, shares, limit, cases) -> list[np.ndarray]:
    """The layer's output bits on this rank for each case (waves, schedule)."""
    rank, size = group.rank(), group.size()
    experts = shard(weights, rank, size)
    mine = tokens_of(tokens, shares, rank)
    outputs = []
    for waves, schedule in cases:
        out = kf.mega_moe(*mine, *experts, group, waves, limit, schedule=schedule)
        outputs.append(out.view(torch.uint16).numpy())
    return outputs


def run_layer_in_batches(world, weights, tokens, shares, limit, cases) -> tuple[int, list[np.ndarray]]:
    """The same with the messages of accelerators' backends, carried by gloo; connected, closed and connected again.

    Ranks are counted from the other end of ``world``; what this one's is comes first.
    """
    group = torch.distributed.new_group(list(reversed(range(world.size()))), sort_ranks=False)
    device, options = torch.device("cpu"), sessions.Options(timeout=30)
    found = []
    for _ in range(2):
        opened = sessions.open_session(AcceleratorTransport(group, device, options.timeout), device, options)
        sessions._sessions[group.group_name, device] = opened
        found.append(run_layer(group, weights, tokens, shares, limit, cases))
        sessions.close(group)
    assert all(np.array_equal(first, second) for first, second in zip(*found, strict=True))
    return group.rank(), found[0]


def run_backward(group, weights, tokens, grad, shares, limit, cases) -> list[list[np.ndarray]]:
    """The layer's gradients on this rank for each case (waves, schedule): x (bits), topk_weight, w1, w2."""
    rank, size = group.rank(), group.size()
    experts = Experts(*shard(weights, rank, size), limit, None)
    mine = tokens_of(tokens, shares, rank)
    own = torch.from_numpy(grad[shares[rank]].copy()).view(torch.bfloat16)
    opened = sessions.session(group, torch.device("cpu"))
    found = []
    for waves, schedule in cases:
        x, *others = backward(opened, own, mine, experts, True, waves, schedule)
        found.append([x.view(torch.uint16).numpy(), *(tensor.numpy() for tensor in others)])
    return found


def run_autograd(group, weights, tokens, grad, shares, limit) -> list[np.ndarray]:
    """What autograd finds on this rank for x (bits) and topk_weight."""
    x, topk_idx, weight = tokens_of(tokens, shares, group.rank())
    x, weight = x.requires_grad_(), weight.requires_grad_()
    out = kf.mega_moe(x, topk_idx, weight, *shard(weights, group.rank(), group.size()), group, "auto", limit)
    out.backward(torch.from_numpy(grad[shares[group.rank()]].copy()).view(torch.bfloat16))
    return [x.grad.view(torch.uint16).numpy(), weight.grad.numpy()]


def run_training(group, dense, tokens, grad, shares, limit) -> list[np.ndarray]:
    """What autograd finds on this rank through a module: x (bits), topk_weight, gate_up, down."""
    x, topk_idx, weight = tokens_of(tokens, shares, group.rank())
    x, weight = x.requires_grad_(), weight.requires_grad_()
    gate_up, down = (torch.from_numpy(array) for array in dense)
    module = MXFP4Experts.from_dense(gate_up, down, limit, trainable=True, group=group)
    out = module(x, topk_idx, weight)
    out.backward(torch.from_numpy(grad[shares[group.rank()]].copy()).view(torch.bfloat16))
    found = weight.grad, module.gate_up.grad, module.down.grad
    return [x.grad.view(torch.uint16).numpy(), *(tensor.numpy() for tensor in found)]


def run_moe(group, settings, tokens, shares) -> list[np.ndarray]:
    """A whole layer's output (bits) on this rank, and the gradients of its experts, from the same seed everywhere."""
    torch.manual_seed(0)
    whole = MoE(**settings)
    dense = whole.experts.gate_up.detach(), whole.experts.down.detach()
    limit = whole.experts.swiglu_limit
    whole.experts = MXFP4Experts.from_dense(*dense, limit, trainable=True, group=group)
    out = whole(torch.from_numpy(tokens[shares[group.rank()]].copy()).view(torch.bfloat16))
    out.float().sum().backward()
    found = out.detach().view(torch.uint16), whole.experts.gate_up.grad, whole.experts.down.grad
    return [tensor.numpy() for tensor in found]


class Sleeping:
    """Products that take a time in proportion to their rows, and no processor."""

    def __init__(self, seconds_per_row: float, result_bytes: int) -> None:
        self.seconds_per_row, self.result_bytes = seconds_per_row, result_bytes

    def linear1(self, wave, arrived):
        time.sleep(arrived.rows.shape[0] * self.seconds_per_row * 2 / 3)

    def linear2(self, wave, arrived, state):
        time.sleep(arrived.rows.shape[0] * self.seconds_per_row / 3)
        return torch.zeros((arrived.rows.shape[0], self.result_bytes), dtype=torch.uint8)


def run_slept(group, counts, cases, seconds, link, sizes, rounds=4) -> list[float]:
    """Seconds of each case on this rank: the least of a few rounds. ``sizes``: bytes of a row out, and back."""
    configure(group, link=link)
    engine = sessions.session(group, torch.device("cpu")).engine
    taken = []
    for schedule, waves in cases:
        plan = WavePlan(counts, group.rank(), waves)
        rows = torch.zeros((plan.rows, sizes[0]), dtype=torch.uint8)
        work = Sleeping(seconds / plan.hosted, sizes[1])
        found = []
        for _ in range(rounds):
            torch.distributed.barrier(group)
            begun = time.monotonic()
            with engine.call():
                execute(engine, program(schedule, plan.waves), plan, sizes[0], lambda rows=rows: rows, work, sizes[1])
            found.append(time.monotonic() - begun)
        taken.append(min(found))
    return taken


def configure(group, timeout=60.0, checksums=False, link=None) -> None:
    sessions.configure(group, sessions.Options(timeout, checksums, Link(*link) if link else None))


class Dying:
    """A transport whose process dies when it sends for the nth time on a channel."""

    def __init__(self, inner, channel: int, number: int) -> None:
        self.inner, self.rank, self.size, self.early = inner, inner.rank, inner.size, inner.early
        self.channel, self.left = channel, number

    def post(self, channel, sends, receives):
        self.left -= channel == self.channel and bool(sends)
        if self.left == 0:
            os._exit(1)
        return self.inner.post(channel, sends, receives)


def timed_failure(group, weights, tokens, shares, waves, victim=-1, channel=0, number=0):
    """Run the layer; the error's type and text (empty for none) and the seconds it took. ``victim`` dies on the way."""
    session = sessions.session(group, torch.device("cpu"))
    if group.rank() == victim:
        session.engine.transport = Dying(session.engine.transport, channel, number)
        session.agreeing = Agreeing(session.engine.transport, torch.device("cpu"), 60.0)
    experts = Experts(*shard(weights, group.rank(), group.size()), 10.0, None)
    begun = time.monotonic()
    kind = said = ""
    try:
        forward(session, tokens_of(tokens, shares, group.rank()), experts, waves, "waves")
    except (RuntimeError, ValueError) as error:
        kind, said = type(error).__name__, str(error)
    return kind, said, time.monotonic() - begun


def run_with_checksums(group, weights, tokens, shares, limit, corrupt_on: int):
    """One call with checksums on; a payload that rank ``corrupt_on`` receives is changed on its way."""
    configure(group, timeout=20.0, checksums=True)
    session = sessions.session(group, torch.device("cpu"))
    checked = session.engine.transport
    assert isinstance(checked, CheckedTransport)
    if group.rank() == corrupt_on:
        inner_post = checked.inner.post

        def post(channel, sends, receives):
            exchange = inner_post(channel, sends, receives)
            if channel == 1:  # tokens on their way to their experts
                received = exchange.received

                def corrupted(deadline):
                    received(deadline)
                    receives[0].data[5] ^= 1

                exchange.received = corrupted
            return exchange

        checked.inner.post = post
    experts = Experts(*shard(weights, group.rank(), group.size()), limit, None)
    try:
        out = forward(session, tokens_of(tokens, shares, group.rank()), experts, 2, "waves")
        return out.view(torch.uint16).numpy()
    except RuntimeError as error:
        return type(error).__name__, str(error)


def held_after(group, weights, tokens, shares, calls: int):
    """Resident bytes, threads and open files before and after many calls."""
    session = sessions.session(group, torch.device("cpu"))
    experts = Experts(*shard(weights, group.rank(), group.size()), 10.0, None)
    mine = tokens_of(tokens, shares, group.rank())

    def held():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"]), len(os.listdir("/proc/self/fd"))

    for _ in range(50):
        forward(session, mine, experts, 2, "waves")
    before = held()
    for _ in range(calls):
        forward(session, mine, experts, 2, "waves")
    return before, held()
