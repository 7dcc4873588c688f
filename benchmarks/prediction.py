"""Cost of a prediction relative to training, and cost of a calibration, on one core.

`balance law` is one call of `model.law.period`. Training is that of the same setting with the compiled engine, for 60
periods. The calibration is `empirical.calibrate("mlp", width=64)`.
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
        calibrations = [timed(lambda: empirical.calibrate("mlp", width=64, executor=here)) for _ in range(2)]
        model = calibrations[0][1]
        steps = round(PERIODS * model.law.period(LR, WD))
        laws, predictions, trainings = [], [], []
        for number in range(ROUNDS):
            laws.append(timed(lambda: [model.law.period(LR, WD) for _ in range(CALLS)])[0] / CALLS)
            predictions.append(timed(lambda: model.predict(LR, WD))[0])
            config = empirical.RunConfig(lr=LR, wd=WD, width=64, steps=steps, seed=number, evaluate_every=10**6)
            with tempfile.TemporaryDirectory() as folder:
                trainings.append(
                    timed(lambda run=config, at=folder: empirical.train(run, f"{at}/run", progress=False))[0]
                )
    law, training = statistics.median(laws), statistics.median(trainings)
    calibration_seconds = min(seconds for seconds, _ in calibrations)
    print(f"{'training, ' + str(steps) + ' steps':<32}{training:10.3g} s")
    print(f"{'balance law':<32}{law:10.3g} s{law / training:12.2g} of training   goal <= {SHARE_GOAL:g}")
    prediction = statistics.median(predictions)
    print(f"{'predict, all numbers':<32}{prediction:10.3g} s{prediction / training:12.2g} of training")
    print(f"{'calibration of the MLP':<32}{calibration_seconds:10.3g} s{'':24}   goal <= {CALIBRATION_GOAL:g} s")
    return law / training <= SHARE_GOAL and calibration_seconds <= CALIBRATION_GOAL


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
