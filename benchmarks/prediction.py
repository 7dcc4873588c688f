"""What a prediction costs beside training, and a probe by itself, on one core.

`balance law` is one call of `model.law.period`; training is that of the same setting with the compiled engine, of as
many steps as 60 periods take. The probe is that of `empirical.calibrate("mlp", width=64)`, from the call to the model.
"""

import concurrent.futures
import statistics
import sys
import tempfile
import time

import torch
from threadpoolctl import threadpool_limits

import empirical

LR, WD, PERIODS = 0.5, 0.002, 60
CALLS, ROUNDS = 200, 5
SHARE_GOAL, CALIBRATION_GOAL = 1e-4, 15.0


def timed(work):
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main():
    torch.set_num_threads(1)
    with threadpool_limits(1), concurrent.futures.ThreadPoolExecutor(1) as here:
        # compiled code is loaded before it is timed
        empirical.calibrate("mlp", width=64, periods=20, executor=here)
        probes = [timed(lambda: empirical.calibrate("mlp", width=64, executor=here)) for _ in range(2)]
        model = probes[0][1]
        steps = round(PERIODS * model.law.period(LR, WD))
        laws, expectations, trainings = [], [], []
        for number in range(ROUNDS):
            laws.append(timed(lambda: [model.law.period(LR, WD) for _ in range(CALLS)])[0] / CALLS)
            expectations.append(timed(lambda: model.predict(LR, WD))[0])
            config = empirical.RunConfig(lr=LR, wd=WD, width=64, steps=steps, seed=number, evaluate_every=10**6)
            with tempfile.TemporaryDirectory() as folder:
                trainings.append(
                    timed(lambda run=config, at=folder: empirical.train(run, f"{at}/run", progress=False))[0]
                )
    law, training = statistics.median(laws), statistics.median(trainings)
    probe = min(seconds for seconds, _ in probes)
    print(f"{'training, ' + str(steps) + ' steps':<32}{training:10.3g} s")
    print(f"{'balance law':<32}{law:10.3g} s{law / training:12.2g} of training   goal <= {SHARE_GOAL:g}")
    expected = statistics.median(expectations)
    print(f"{'expect, all numbers':<32}{expected:10.3g} s{expected / training:12.2g} of training")
    print(f"{'probe of the MLP':<32}{probe:10.3g} s{'':24}   goal <= {CALIBRATION_GOAL:g} s")
    return law / training <= SHARE_GOAL and probe <= CALIBRATION_GOAL


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
