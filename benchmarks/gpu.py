"""Steps per second on a GPU: replicas as one captured graph, and a plain PyTorch loop for comparison.

The number of replicas doubles until the memory is full or the speed no longer grows. Times are wall-clock times,
because the CPU only launches the work.
"""

import itertools
import sys
import time

import torch
from training import REPEATED, Task, noise_images

from empirical.data import Data, load_data

DEVICE = torch.device("cuda")
# a smaller gain from doubling the replicas means that the device is fully used
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
        print("no GPU found, nothing to measure")
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
                speed = steps_per_second(*task.engine("replicas", replicas, steps=task.steps))
            except torch.cuda.OutOfMemoryError:
                print(f"{name:16}{f'replicas, {replicas} at once':26}{'out of memory':>20}")
                break
            print(
                f"{name:16}{f'replicas, {replicas} at once':26}{speed:12.0f} steps/s{speed / plain:8.2f} x", flush=True
            )
            if speed < WORTH_IT * before:
                break
            before = speed
    return 0


if __name__ == "__main__":
    sys.exit(main())
