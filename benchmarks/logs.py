"""Speed of reading long logs, compared with Python's csv module and with pandas on the same numbers.

All candidates run in turn in one process. The speed is the median number of rows per second of processor time.
"""

import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas

import simulate

ROWS, ROUNDS = 300_000, 3
TENSORBOARD_MEGABYTES = 50
# processor time, as multiples of that of the csv module
CSV_GOAL, TEXT_GOAL, JSON_GOAL = 1, 3, 3
EVENT_GOAL = 10  # seconds for 50 MB

generator = np.random.default_rng(0)
losses = generator.uniform(1, 2, ROWS).tolist()


def write_logs(folder):
    """Write the same losses as table, text, JSON lines and event files."""
    with (folder / "log.csv").open("w") as file:
        file.write("step,loss,lr,grad_norm,weight_norm\n")
        file.writelines(f"{t},{x:.6f},0.001,{x / 3:.5f},{30 + x:.4f}\n" for t, x in enumerate(losses))
    with (folder / "log.txt").open("w") as file:
        file.writelines(
            f"step {t:5d} | loss: {x:.6f} | lr 6.0000e-04 | norm: {x / 3:.4f} | dt: 300.00ms | tok/sec: 1000.00\n"
            for t, x in enumerate(losses)
        )
    with (folder / "log.jsonl").open("w") as file:
        file.writelines(f'{{"step": {t}, "loss": {x:.6f}, "lr": 0.001}}\n' for t, x in enumerate(losses))


def write_events(folder):
    """Write event files of 50 MB; return their size in MB."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder), max_queue_size=100_000)
    size = 0
    for step in range(10**9):
        values = [Summary.Value(tag=tag, simple_value=losses[step % ROWS]) for tag in ("train/loss", "lr", "memory")]
        for value in values:
            event = Event(wall_time=1.7e9 + step, step=step, summary=Summary(value=[value]))
            size += event.ByteSize() + 16
            writer.add_event(event)
        if size > TENSORBOARD_MEGABYTES * 1e6:
            break
    writer.close()
    return size / 1e6


def read_with_csv(path):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    return [np.array(column[1:], dtype=object).astype(float) for column in zip(*rows, strict=True)]


def seconds(call):
    began = time.process_time()
    call()
    return time.process_time() - began


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_logs(folder)
        candidates = {
            "csv module": lambda: read_with_csv(folder / "log.csv"),
            "pandas.read_csv": lambda: pandas.read_csv(folder / "log.csv"),
            "read_log, CSV": lambda: simulate.read_log(folder / "log.csv"),
            "read_log, text": lambda: simulate.read_log(folder / "log.txt"),
            "read_log, JSON lines": lambda: simulate.read_log(folder / "log.jsonl"),
        }
        rounds = [[seconds(call) for call in candidates.values()] for _ in range(ROUNDS)]
        times = {key: statistics.median(t) for key, t in zip(candidates, zip(*rounds, strict=True), strict=True)}
        unit = times["csv module"]
        for key, value in times.items():
            print(f"{key:24}{value:8.2f} s{ROWS / value / 1e3:10.0f} k rows/s{value / unit:8.2f} x csv module")
        goals = {
            f"CSV <= {CSV_GOAL} x csv module": times["read_log, CSV"] <= CSV_GOAL * unit,
            f"text <= {TEXT_GOAL} x csv module": times["read_log, text"] <= TEXT_GOAL * unit,
            f"JSON lines <= {JSON_GOAL} x csv module": times["read_log, JSON lines"] <= JSON_GOAL * unit,
        }
        try:
            size = write_events(folder / "events")
        except ImportError:
            print("event files: TensorBoard is not installed")
        else:
            time_of_events = seconds(lambda: simulate.read_log(folder / "events"))
            print(f"read_log, event files   {time_of_events:8.2f} s for {size:.0f} MB")
            goals[f"event files <= {EVENT_GOAL} s"] = time_of_events <= EVENT_GOAL
    for goal, is_reached in goals.items():
        print(f"{goal}: {'reached' if is_reached else 'NOT reached'}")
    return not all(goals.values())


if __name__ == "__main__":
    sys.exit(main())
