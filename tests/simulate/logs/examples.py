"""Small logs in the forms of many tools, written here line by line: text, and what must be read from it."""

from dataclasses import dataclass, field

import numpy as np

COUNT = 30
LOSSES = [round(float(loss), 4) for loss in 0.4 + 2 * np.exp(-np.arange(COUNT) / 10) + 0.03 * np.sin(np.arange(COUNT))]
GRADIENTS = [round(1.2 + 0.01 * (t % 7), 2) for t in range(COUNT)]


@dataclass(frozen=True)
class Example:
    """A log, and what is in it: steps, losses, columns by meaning, and words of the remarks."""

    name: str
    text: str
    form: str
    columns: dict[str, str]
    steps: list[int] = field(default_factory=lambda: list(range(COUNT)))
    losses: list[float] = field(default_factory=lambda: LOSSES)
    unit: str = "steps"
    epoch_length: int | None = None
    gradient: list[float] | None = None
    remark: str = ""

    @property
    def file_name(self) -> str:
        # the reader goes by content
        return "log.dat"


def lines(template, *, before="", after="", every=None):
    """One line of the template for each step; `every` are further lines after each tenth step."""
    rows = []
    for t in range(COUNT):
        values = {"t": t, "t1": t + 1, "loss": LOSSES[t], "g": GRADIENTS[t]}
        values |= {"epoch0": t // 10, "epoch1": t // 10 + 1, "in0": t % 10, "in1": t % 10 + 1, "tens": 10 * (t + 1)}
        rows.append(template.format(**values))
        if every and t % 10 == 9:
            rows.append(every.format(**values))
    return before + "\n".join(rows) + "\n" + after


ONE = list(range(1, COUNT + 1))
TENS = [10 * t for t in ONE]

TEXTS = [
    Example(
        "nanoGPT",
        lines(
            "iter {t}: loss {loss:.4f}, time 200.00ms, mfu 10.00%",
            before="tokens per iteration will be: 16,384\nstep 0: train loss 9.4, val loss 9.5\n",
            every="step {t}: train loss 9.4, val loss 9.5\nsaving checkpoint to out",
        ),
        "nanoGPT log",
        {"step": "iter", "loss": "loss"},
    ),
    Example(
        "minGPT",
        lines("iter_dt 10.00ms; iter {t}: train loss {loss:.4f}"),
        "nanoGPT log",
        {"step": "iter", "loss": "train loss"},
    ),
    Example(
        "build-nanogpt",
        lines(
            "step {t:5d} | loss: {loss:.6f} | lr 6.0000e-04 | norm: {g:.4f} | dt: 300.00ms | tok/sec: 1000.00",
            every="validation loss: 9.99",
        ),
        "build-nanogpt log",
        {"step": "step", "loss": "loss", "lr": "lr", "gradient": "norm"},
        gradient=GRADIENTS,
    ),
    Example(
        "llm.c",
        lines(
            "step {t1:4d}/18865 | loss {loss:.6f} (+nanz)| norm {g:.4f} (-0.12z)| lr 8.6e-07 | 4000.12 ms | "
            "45.1% bf16 MFU | 130000 tok/s",
            before="| device | NVIDIA |\n| weight_decay | 0.1 |\nval loss 10.9\n",
            every="val loss 9.99",
        ),
        "llm.c log",
        {"step": "step", "loss": "loss", "lr": "lr", "gradient": "norm"},
        steps=ONE,
        gradient=GRADIENTS,
    ),
    Example(
        "llama2.c",
        lines(
            "{t} | loss {loss:.4f} | lr 1.0e-05 | 300.00ms | mfu 10.00%", before="step 0: train loss 9, val loss 9\n"
        ),
        "text log",
        {"loss": "loss", "lr": "lr"},
    ),
    Example(
        "modded-nanogpt",
        lines(
            "step:{t}/400 train_loss:{loss:.4f} train_time:{tens}ms step_avg:300.00ms",
            before="import os\nloss = 3 * step  # step: 7 loss: 5\nfor step in range(10):\n    "
            "print(f'{step}')\n=====\n",
            every="step:{t}/400 val_loss:9.9999 train_time:0ms step_avg:300.00ms",
        ),
        "modded-nanogpt log",
        {"step": "step", "loss": "train_loss"},
    ),
    Example(
        "Megatron-LM",
        lines(
            " iteration {t1:8d}/     400 | consumed samples:            8 | elapsed time per iteration (ms): 283.9 | "
            "learning rate: 1.500E-04 | global batch size:     8 | lm loss: {loss:.6E} | loss scale: 1.0 | "
            "grad norm: {g:.3f} | params norm: 238.330 | number of skipped iterations:   0 | "
            "number of nan iterations:   0 |",
            every=" validation loss at iteration {t1} | lm loss value: 9.99E+00 | lm loss PPL: 9.0E+02 | ",
        ),
        "Megatron-LM log",
        {
            "step": "iteration",
            "loss": "lm loss",
            "lr": "learning rate",
            "gradient": "grad norm",
            "all_weights_norm": "params norm",
        },
        steps=ONE,
        gradient=GRADIENTS,
    ),
    Example(
        "Megatron-LM with times",
        lines(
            " [2025-01-01 10:00:00.123456] iteration {t1:8d}/     400 | consumed samples:            8 | "
            "elapsed time per iteration (ms): 283.9 | learning rate: 1.5E-04 | lm loss: {loss:.6E} | grad "
            "norm: {g:.3f} |"
        ),
        "Megatron-LM log",
        {"step": "iteration", "loss": "lm loss", "lr": "learning rate", "gradient": "grad norm"},
        steps=ONE,
        gradient=GRADIENTS,
    ),
    Example(
        "GPT-NeoX",
        lines(
            "10.0.0.1:  samples/sec: 10.123 | iteration {t1:8d}/  320000 | elapsed time per iteration (ms): 283.9 | "
            "learning rate: 1.500E-04 | approx flops per GPU: 11.2TFLOPS | lm_loss: {loss:.6E} | loss scale: 1.0 | "
            "number of skipped iterations:   0 | number of nan iterations:   0 |"
        ),
        "text log",
        {"step": "iteration", "loss": "lm_loss", "lr": "learning rate"},
        steps=ONE,
    ),
    Example(
        "torchtitan",
        lines(
            "[rank0]:[titan] 2025-01-01 10:00:00,000 - root - INFO - \x1b[31mstep: {t1:2d}  \x1b[32mloss: {loss:7.4f}  "
            "\x1b[38;2;180;60;0mgrad_norm: {g:7.4f}  \x1b[33mmemory:  1.21GiB(1.3%)  \x1b[34mtps: 7,340  "
            "tflops: 12.34\x1b[39m"
        ),
        "torchtitan log",
        {"step": "step", "loss": "loss", "gradient": "grad_norm"},
        steps=ONE,
        gradient=GRADIENTS,
    ),
    Example(
        "OLMo",
        lines(
            "2025-01-01 10:00:00.000\thost:0\tolmo.train:967\tINFO\t[step={t1}/1000,epoch=0]\n"
            "    optim/total_grad_norm={g:.3f}\n    train/CrossEntropyLoss={loss:.4f}\n    train/Perplexity=88,021\n"
            "    throughput/total_tokens=4,194,304\n    System/Peak GPU Memory (MB)=33,043\n"
            "    optim/learning_rate_group0=0.0001",
            every="2025-01-01 10:00:00.000\thost:0\tolmo.train:1\tINFO\t[eval_step=10/10]\n    "
            "eval/val/CrossEntropyLoss=9.9",
        ),
        "OLMo log",
        {
            "step": "step",
            "loss": "train/CrossEntropyLoss",
            "lr": "optim/learning_rate_group0",
            "gradient": "optim/total_grad_norm",
            "epoch": "epoch",
        },
        steps=ONE,
        gradient=GRADIENTS,
    ),
    Example(
        "fairseq",
        lines(
            "2021-01-01 10:00:00 | INFO | train_inner | epoch {epoch1:03d}:    {tens} / 1000 "
            "loss={loss:.4f}, ppl=1448.1, "
            "wps=72384.3, ups=1.21, wpb=59997.9, bsz=2186.3, num_updates={tens}, lr=1e-05, gnorm={g:.2f}, clip=0, "
            "train_wall=80, wall=0",
            every="2021-01-01 10:00:00 | INFO | valid | epoch {epoch1:03d} | valid on 'valid' subset | loss 9.9 | "
            "ppl 9 | num_updates {tens}\n2021-01-01 10:00:00 | INFO | train | epoch {epoch1:03d} | loss 8.8 | ppl 9 | "
            "num_updates {tens} | lr 1e-05 | gnorm 9.9 | wall 0",
        ),
        "fairseq log",
        {"step": "num_updates", "loss": "loss", "lr": "lr", "gradient": "gnorm", "epoch": "epoch"},
        steps=TENS,
        gradient=GRADIENTS,
        epoch_length=1000,
    ),
    Example(
        "fairseq, dicts",
        lines(
            '2021-01-01 10:00:00 | INFO | train_inner | {{"epoch": {epoch1}, "update": {t1}.5, "loss": "{loss}", '
            '"ppl": "91120.8", "wps": "0", "num_updates": "{tens}", "lr": "2e-05", "gnorm": "{g}", "loss_scale": "4"}}',
            every='2021-01-01 10:00:00 | INFO | valid | {{"epoch": {epoch1}, "valid_loss": "9.9", '
            '"valid_num_updates": "{tens}"}}\n2021-01-01 10:00:00 | INFO | train | {{"epoch": {epoch1}, '
            '"train_loss": "8.8", "train_num_updates": "{tens}", "train_gnorm": "9.9"}}',
        ),
        "fairseq log",
        {"step": "num_updates", "loss": "loss", "lr": "lr", "gradient": "gnorm", "epoch": "epoch"},
        steps=TENS,
        gradient=GRADIENTS,
    ),
    Example(
        "detectron2",
        lines(
            "[01/01 10:00:00 d2.utils.events]:  eta: 1:00:00  iter: {tens}  total_loss: {loss}  loss_cls: 1.1  "
            "loss_box_reg: 0.3  time: 0.3101  data_time: 0.0120  lr: 0.01  max_mem: 3000M",
            before="[01/01 10:00:00 d2.engine.train_loop]: Starting training from iteration 0\n",
        ),
        "detectron2 log",
        {"step": "iter", "loss": "total_loss", "lr": "lr"},
        steps=TENS,
    ),
    Example(
        "MMCV",
        lines(
            "2021-01-01 10:00:00,000 - mmdet - INFO - Epoch [{epoch1}][{in1}/10]\tlr: 1.000e-03, eta: 10:00:00, "
            "time: 0.300, data_time: 0.010, memory: 3000, loss_cls: 1.1, loss: {loss}, grad_norm: {g}",
            every="2021-01-01 10:00:00,000 - mmdet - INFO - Epoch(val) [{epoch1}][50]\tbbox_mAP: 0.3, loss: 9.9",
        ),
        "MMCV log",
        {"step": "position in epoch", "loss": "loss", "lr": "lr", "gradient": "grad_norm", "epoch": "Epoch"},
        steps=ONE,
        gradient=GRADIENTS,
        epoch_length=10,
        remark="counts within epochs",
    ),
    Example(
        "MMEngine",
        lines(
            "01/01 10:00:00 - mmengine - INFO - Epoch(train)  [{epoch1}][{in1:5d}/10]  base_lr: 1.0e-03 lr: "
            "1.0000e-03  "
            "eta: 1:00:00  time: 0.3  data_time: 0.01  memory: 3000  grad_norm: {g}  loss: {loss}  loss_cls: 1.1",
            every="01/01 10:00:00 - mmengine - INFO - Epoch(val)  [{epoch1}][50/50]    coco/bbox_mAP: 0.3  loss: 9.9",
        ),
        "MMEngine log",
        {"step": "position in epoch", "loss": "loss", "lr": "lr", "gradient": "grad_norm", "epoch": "Epoch(train)"},
        steps=ONE,
        gradient=GRADIENTS,
        epoch_length=10,
    ),
    Example(
        "MMEngine by iterations",
        lines(
            "01/01 10:00:00 - mmengine - INFO - Iter(train) [{tens:6d}/160000]  base_lr: 1.0e-03 lr: 1.0000e-03  "
            "eta: 1:00:00  time: 0.3  data_time: 0.01  memory: 3000  loss: {loss}"
        ),
        "MMEngine log",
        {"step": "Iter(train)", "loss": "loss", "lr": "lr"},
        steps=TENS,
    ),
    Example(
        "PyTorch ImageNet example",
        lines(
            "Epoch: [{epoch0}][{in0:4d}/10]\tTime  0.500 ( 0.700)\tData  0.010 ( 0.020)\tLoss {loss:.4e} (9.9000e+00)\t"
            "Acc@1   0.00 (  0.10)\tAcc@5   1.00 (  0.50)",
            every="Test: [  0/196]\tTime  0.500 ( 0.700)\tLoss 9.9000e+00 (9.9000e+00)\tAcc@1   0.00 (  0.10)\n"
            " *   Acc@1 76.130 Acc@5 92.862",
        ),
        "output of the PyTorch ImageNet example",
        {"step": "position in epoch", "loss": "Loss", "epoch": "Epoch"},
        epoch_length=10,
    ),
    Example(
        "PyTorch language model example",
        lines(
            "| epoch {epoch1:3d} | {in1:5d}/   10 batches | lr 20.00 | ms/batch 11.54 | loss {loss:5.4f} | "
            "ppl  2063.73",
            every="-----\n| end of epoch   {epoch1} | time: 20.00s | valid loss  9.90 | valid ppl  9.9\n-----",
        ),
        "text log",
        {"step": "position in epoch", "loss": "loss", "lr": "lr", "epoch": "epoch"},
        steps=ONE,
        epoch_length=10,
    ),
    Example(
        "PyTorch CIFAR tutorial",
        lines(
            "[{epoch1}, {in1:5d}] loss: {loss:.4f}", before="Files already downloaded\n", after="Finished Training\n"
        ),
        "text log",
        {"step": "position in epoch", "loss": "loss", "epoch": "epoch"},
        steps=ONE,
        epoch_length=10,
    ),
    Example(
        "timm",
        lines(
            "Train: {epoch0} [{in0:4d}/10 ({in0:3d}%)]  Loss: {loss:.4f} (9.90)  Time: 0.3s, 800.00/s  "
            "(0.3s, 800.00/s)  "
            "LR: 1.000e-06  Data: 0.010 (0.020)",
            every="Test: [   0/48]  Time: 0.5 (0.5)  Loss:  9.9000 (9.9000)  Acc@1: 10.0 (10.0)",
        ),
        "timm log",
        {"step": "position in epoch", "loss": "Loss", "lr": "LR", "epoch": "Train"},
        epoch_length=10,
    ),
    Example(
        "DeiT",
        lines(
            "Epoch: [{epoch0}]  [{in0:4d}/10]  eta: 0:10:00  lr: 0.000001  loss: {loss:.4f} (9.9000)  time: 0.3  "
            "data: 0.1  max mem: 3000",
            every="Epoch: [{epoch0}] Total time: 0:10:00 (0.3 s / it)\nAveraged stats: lr: 0.000001  loss: 8.8 "
            "(9.9000)\n"
            "Test:  [  0/105]  eta: 0:00:10  loss: 9.9 (9.9)  acc1: 1.0 (1.0)",
        ),
        "text log",
        {"step": "position in epoch", "loss": "loss", "lr": "lr", "epoch": "Epoch"},
        epoch_length=10,
        remark="without a step are left out",
    ),
    Example(
        "DeepSpeed pipeline",
        lines("steps: {t1} loss: {loss:.4f} iter time (s): 0.500 samples/sec: 32.0"),
        "DeepSpeed log",
        {"step": "steps", "loss": "loss"},
        steps=ONE,
    ),
    Example(
        "DeepSpeed",
        lines(
            "[2023-01-01 10:00:00,000] [INFO] [logging.py:96:log_dist] [Rank 0] step={tens}, skipped=0, "
            "lr=[1e-05, 1e-05], mom=[(0.9, 0.95), (0.9, 0.95)]\nloss: {loss}"
        ),
        "text log",
        {"step": "step", "loss": "loss", "lr": "lr"},
        steps=TENS,
    ),
    Example(
        "torchtune",
        lines("Step {t1} | loss:{loss} lr:2e-05 tokens_per_second_per_gpu:100.5 grad_norm:{g}"),
        "torchtune log",
        {"step": "Step", "loss": "loss", "lr": "lr", "gradient": "grad_norm"},
        steps=ONE,
        gradient=GRADIENTS,
    ),
    Example(
        "MaxText",
        lines(
            "completed step: {t}, seconds: 1.200, TFLOP/s/device: 100.0, Tokens/s/device: 1000.0, "
            "total_weights: 65536, "
            "loss: {loss:.4f}"
        ),
        "MaxText log",
        {"step": "step", "loss": "loss"},
    ),
    Example(
        "nanotron",
        lines(
            "10/01/2024 10:00:00 [INFO|DP=0|PP=0|TP=0|ip-1-2-3-4]: iteration: {t1} / 1000 | consumed_tokens: 1M | "
            "elapsed_time_per_iteration_ms: 283 | tokens_per_sec: 1K | global_batch_size: 8 | lm_loss: {loss} | "
            "lr: 0.0003 | model_tflops_per_gpu: 10 | grad_norm: {g}"
        ),
        "nanotron log",
        {"step": "iteration", "loss": "lm_loss", "lr": "lr", "gradient": "grad_norm"},
        steps=ONE,
        gradient=GRADIENTS,
    ),
    Example(
        "nanochat",
        lines(
            "step {t:05d}/21400 (0.00%) | loss: {loss:.6f} | grad norm: {g:.4f} | lrm: 1.00 | dt: 300.00ms | "
            "tok/sec: 1,000 | mfu: 48.00 | total time: 0.00m",
            every="Step {t:05d} | Validation bpb: 9.9",
        ),
        "nanochat log",
        {"step": "step", "loss": "loss", "gradient": "grad norm"},
        gradient=GRADIENTS,
    ),
    Example(
        "NeMo",
        lines(
            "Training epoch 0, iteration {t}/999 | lr: 4.9e-06 | global_batch_size: 8 | global_step: {t} | "
            "reduced_train_loss: {loss} | train_step_timing in s: 0.5 | consumed_samples: 88 | val_loss: 9.9"
        ),
        "NeMo log",
        {"step": "global_step", "loss": "reduced_train_loss", "lr": "lr", "epoch": "Training epoch"},
    ),
    Example(
        "LitGPT",
        lines("Epoch 1 | iter {tens} step {t1} | loss train: {loss}, val: n/a | iter time: 100.00 ms (step)"),
        "text log",
        {"step": "step", "loss": "loss train", "epoch": "Epoch"},
        steps=ONE,
    ),
    Example(
        "Keras",
        "".join(
            f"Epoch {t + 1}/{COUNT}\n\r 10/469 [>....] - ETA: 1:00 - loss: 9.9\b\b\b\r 20/469 [=>...] - ETA: 1:00 - "
            f"loss: 8.8\r469/469 [==========] - 2s 4ms/step - loss: {LOSSES[t]} - val_loss: 9.4\n"
            for t in range(COUNT)
        ),
        "output of Keras",
        {"loss": "loss", "epoch": "Epoch"},
        steps=ONE,
        unit="epochs",
    ),
    Example(
        "Keras 3",
        "".join(
            f"Epoch {t + 1}/{COUNT}\n\x1b[1m469/469\x1b[0m \x1b[32m━━━━━━━━━━\x1b[0m\x1b[37m\x1b[0m \x1b[1m2s\x1b[0m "
            f"4ms/step - accuracy: 0.9 - loss: {LOSSES[t]} - val_accuracy: 0.9 - val_loss: 9.4\n"
            for t in range(COUNT)
        ),
        "output of Keras",
        {"loss": "loss", "epoch": "Epoch"},
        steps=ONE,
        unit="epochs",
    ),
    Example(
        "Keras, verbose=2",
        "".join(
            f"Epoch {t + 1}/{COUNT}\n469/469 - 2s - 4ms/step - accuracy: 0.9 - loss: {LOSSES[t]} - val_loss: 9.4\n"
            for t in range(COUNT)
        ),
        "output of Keras",
        {"loss": "loss", "epoch": "Epoch"},
        steps=ONE,
        unit="epochs",
    ),
    Example(
        "Lightning progress bar",
        "\r".join(
            f"Epoch {t // 10}:  {10 * (t % 10)}%|{'█' * (t % 10)}  | {t % 10 + 1}/10 [00:01<00:10, 10.00it/s, v_num=0, "
            f"train_loss={LOSSES[t]}]"
            for t in range(COUNT)
        ),
        "Lightning progress bar",
        {"step": "position in epoch", "loss": "train_loss", "epoch": "Epoch"},
        steps=ONE,
        epoch_length=10,
    ),
    Example(
        "diffusers",
        "\r".join(
            f"Steps:  {t}%|█  | {t + 1}/1000 [00:10<00:20, 1.0it/s, lr=1e-5, step_loss={LOSSES[t]}]"
            for t in range(COUNT)
        ),
        "text log",
        {"step": "position in epoch", "loss": "step_loss", "lr": "lr"},
        steps=ONE,
    ),
    Example(
        "Estimator of TensorFlow",
        lines(
            "INFO:tensorflow:loss = {loss}, step = {tens} (0.512 sec)", every="INFO:tensorflow:global_step/sec: 123.4"
        ),
        "text log",
        {"step": "step", "loss": "loss"},
        steps=TENS,
    ),
    Example(
        "Caffe",
        lines(
            "I0101 10:00:00.000000 1234 solver.cpp:239] Iteration {tens} (10.1 iter/s, 1s/10 iters), loss = {loss}\n"
            "I0101 10:00:00.000000 1234 sgd_solver.cpp:105] Iteration {tens}, lr = 0.01"
        ),
        "text log",
        {"step": "Iteration", "loss": "loss", "lr": "lr"},
        steps=TENS,
    ),
    Example(
        "CLU",
        lines("I0101 10:00:00.000000 1234 logging_writer.py:48] [{tens}] learning_rate=0.1, loss={loss}, accuracy=0.1"),
        "text log",
        {"loss": "loss", "lr": "learning_rate"},
        steps=TENS,
    ),
    Example(
        "Flax example",
        lines(
            "I0101 10:00:00.000000 1234 train.py:10] epoch: {t1:2d}, train_loss: {loss:.4f}, train_accuracy: 92.12, "
            "test_loss: 9.9, test_accuracy: 90.1"
        ),
        "text log",
        {"loss": "train_loss", "epoch": "epoch"},
        steps=ONE,
        unit="epochs",
    ),
    Example(
        "Composer",
        lines(
            "[batch={t1}/4800]:\n\t Train time/batch: {t}\n\t Train loss/train/total: {loss}\n"
            "\t Train lr-DecoupledAdamW/group0: 0.001\n\t Train l2_norm/grad/global: {g}"
        ),
        "Composer log",
        {"step": "batch", "loss": "Train loss/train/total"},
        steps=ONE,
    ),
    Example(
        "Ignite",
        lines(
            "Epoch[{epoch1}] Iteration[{in1}/10] Loss: {loss}",
            every="Training Results - Epoch: {epoch1}  Avg accuracy: 0.95 Avg loss: 8.8\n"
            "Validation Results - Epoch: {epoch1}  Avg accuracy: 0.95 Avg loss: 9.9",
        ),
        "text log",
        {"step": "Iteration", "loss": "Loss", "epoch": "Epoch"},
        steps=ONE,
        epoch_length=10,
    ),
    Example(
        "a tutorial",
        lines("Epoch [{epoch1}/5], Step [{in1}/10], Loss: {loss:.4f}"),
        "text log",
        {"step": "Step", "loss": "Loss", "epoch": "Epoch"},
        steps=ONE,
        epoch_length=10,
    ),
    Example(
        "a loop with tensors",
        lines("step {t} loss tensor({loss}, device='cuda:0', grad_fn=<NllLossBackward0>) lr 0.1"),
        "text log",
        {"step": "step", "loss": "loss", "lr": "lr"},
    ),
    Example(
        "a loop over epochs",
        lines("Epoch {t1:3d} loss {loss} | train 2.6s", every="Epoch {t1:3d} | Acc 9.32% | val loss 9.9"),
        "text log",
        {"loss": "loss", "epoch": "Epoch"},
        steps=ONE,
        unit="epochs",
    ),
    Example(
        "a loop without steps",
        lines("loss: {loss}  lr: 0.01", before="Training starts\n"),
        "text log",
        {"loss": "loss", "lr": "lr"},
        unit="rows",
    ),
    Example(
        "SpeechBrain",
        lines("epoch: {t1}, lr: 1.00e+00 - train loss: {loss} - valid loss: 9.9, valid CER: 10.1"),
        "text log",
        {"loss": "train loss", "lr": "lr", "epoch": "epoch"},
        steps=ONE,
        unit="epochs",
    ),
    Example(
        "icefall",
        lines(
            "2022-01-01 10:00:00,000 INFO [train.py:895] Epoch {epoch1}, batch {in0}, loss[loss={loss}, "
            "simple_loss=0.3, "
            "over 100.00 frames.], tot_loss[loss=9.9, over 100.00 frames.], batch size: 30, lr: 3.00e-03, ",
            every="2022-01-01 10:00:00,000 INFO [train.py:929] Epoch {epoch1}, validation: loss=9.9, over 100 frames.",
        ),
        "text log",
        {"step": "batch", "loss": "loss", "lr": "lr", "epoch": "Epoch"},
        epoch_length=10,
    ),
    Example(
        "a box for each step",
        lines(
            "-----------------------\n| grad_norm  | {g}    |\n| loss       | {loss:<8} |\n| param_norm | 200      |\n"
            "| samples    | 640      |\n| step       | {tens}      |\n-----------------------"
        ),
        "text log",
        {"step": "step", "loss": "loss", "gradient": "grad_norm", "all_weights_norm": "param_norm"},
        steps=TENS,
        gradient=GRADIENTS,
    ),
    Example(
        "the step after the loss",
        lines("Training loss (for one batch) at step {tens}: {loss}\nSeen so far: 640 samples"),
        "text log",
        {"step": "step", "loss": "Training loss"},
        steps=TENS,
    ),
    Example(
        "Marian",
        lines(
            "[2023-01-01 10:00:00] Ep. 1 : Up. {tens} : Sen. 123,456 : Cost {loss} : Time 100.12s : 12345.67 words/s : "
            "gNorm {g} : L.r. 3.0000e-04"
        ),
        "text log",
        {"step": "Up.", "loss": "Cost", "lr": "L.r.", "gradient": "gNorm", "epoch": "Ep."},
        steps=TENS,
        gradient=GRADIENTS,
    ),
]
