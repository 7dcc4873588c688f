"""Cost of the monitor in a loop that trains a transformer of 10 million weights with AdamW, as a share of a step.

The numbers are CPU times of one thread, measured in the same loop. The first checks of the optimizer's steps are not
counted, later ones are. The cost of finding the groups is given in forward passes over the whole mini-batch.
"""

import statistics
import sys
import time

import torch
from torch import nn

from empirical import Monitor, scale_invariant_groups

LAYERS, WIDTH, HEADS, TOKENS, LENGTH, BATCH = 8, 320, 5, 256, 128, 8
STEPS, FIRST = 100, 50
GOALS = {"every 10th step": 0.03, "norms of every step": 0.05}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.output = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        projected = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1))
        mixed = nn.functional.scaled_dot_product_attention(*projected.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def differentiated_loss(model, batch):
    loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    return loss


def cpu_time(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Transformer()
    tokens = torch.randint(0, TOKENS, (BATCH, LENGTH + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights")
    with torch.no_grad():
        model(tokens[:, :-1])
        forward = statistics.median(cpu_time(lambda: model(tokens[:, :-1])) for _ in range(3))
    search = cpu_time(lambda: scale_invariant_groups(model, tokens[:4, :16]))
    print(f"finding the groups: {search:.1f} s, {search / forward:.0f} forward passes over the mini-batch")
    # its own checks of steps come first: every tenth of the recorded steps is checked afterwards
    monitors = {
        "every 10th step": Monitor(model, optimizer, tokens[:4, :16], every=10),
        "norms of every step": Monitor(model, optimizer, tokens[:4, :16], norms_only=True),
        "every step": Monitor(model, optimizer, tokens[:4, :16]),
    }
    seconds = {name: [] for name in ("step", *monitors)}
    for step in range(FIRST + STEPS):
        optimizer.zero_grad()
        batch = tokens if step >= FIRST else tokens[:1, :9]
        losses = []
        times = {"step": cpu_time(lambda batch=batch, losses=losses: losses.append(differentiated_loss(model, batch)))}
        for name, monitor in monitors.items():
            times[name] = cpu_time(lambda monitor=monitor, losses=losses: monitor.before_step(losses[0]))
        times["step"] += cpu_time(optimizer.step)
        for name, monitor in monitors.items():
            times[name] += cpu_time(monitor.after_step)
        if step >= FIRST:
            for name, value in times.items():
                seconds[name].append(value)
    total = statistics.mean(seconds["step"])
    is_reached = True
    print(f"step without monitor: {total:.2f} s")
    for name in monitors:
        share = statistics.mean(seconds[name]) / total
        goal = GOALS.get(name)
        is_reached &= goal is None or share <= goal
        print(f"{name}: {share:.2%} of a step" + (f" (goal {goal:.0%})" if goal else ""))
    return 0 if is_reached else 1


if __name__ == "__main__":
    sys.exit(main())
