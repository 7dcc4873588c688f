"""Steps per second on a GPU: replicas replayed as one graph, against a plain PyTorch loop on the same GPU.

The number of replicas is doubled until the device is full or has nothing left to give. Wall-clock times, because the
processor only starts the work there.
"""

import itertools
import sys
import time

import torch
from training import REPEATED, Task, noise_images

from empirical.data import Data, load_data

DEVICE = torch.device("cuda")
# less gain than this from twice the replicas means that the device is busy
WORTH_IT = 1.1


def steps_per_second(call, steps):
    call()
    torch.cuda.synchronize()
    best = 0.0
    for _ in range(REPEATED):
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        best = max(best, steps / (time.perf_counter() - began))
    return best


def on_device(data):
    return Data(data.inputs.to(DEVICE), data.targets.to(DEVICE))


def main():
    if not torch.cuda.is_available():
        print("no GPU here: nothing to measure")
        return 0
    print(torch.cuda.get_device_name())
    digits = on_device(load_data("digits", torch.float32, torch.device("cpu")))
    tasks = {
        "mlp": Task("mlp", None, digits, 64, 512),
        "convnet": Task("convnet", None, digits, 64, 512),
        "paper's convnet": Task("convnet", 32, on_device(noise_images()), 128, 64),
    }
    for name, task in tasks.items():
        plain = steps_per_second(task.plain_loop, task.steps)
        print(f"{name:16}{'plain loop':26}{plain:12.0f} steps/s")
        before = 0.0
        for replicas in (2**power for power in itertools.count()):
            try:
                rate = steps_per_second(*task.engine("replicas", replicas, steps=task.steps))
            except torch.cuda.OutOfMemoryError:
                print(f"{name:16}{f'replicas, {replicas} at once':26}{'the memory is full':>20}")
                break
            print(f"{name:16}{f'replicas, {replicas} at once':26}{rate:12.0f} steps/s{rate / plain:8.2f} x", flush=True)
            if rate < WORTH_IT * before:
                break
            before = rate
    return 0


if __name__ == "__main__":
    sys.exit(main())
