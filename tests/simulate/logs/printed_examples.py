"""Small texts in which numbers do not follow their names, in the forms of speech recognition and of YOLO."""

from tests.simulate.logs.examples import COUNT, GRADIENTS, LOSSES, ONE, Example, lines

HUNDREDS = [100 * step for step in ONE]
_BAR = "100%|██████████| 16/16 [00:05<00:00,  2.78it/s]"


def yolo_lines(names, cells, *, before_bar=("", "\r")):
    """Names and numbers of each epoch; a bar of progress writes its line again and again."""
    text = "Starting training for 30 epochs...\n"
    for t in range(COUNT):
        halfway = cells.format(t=t, t1=t + 1, loss=9.9) + "  50%|█████     | 8/16 [00:02<00:02,  2.78it/s]"
        whole = cells.format(t=t, t1=t + 1, loss=LOSSES[t]) + _BAR
        text += f"\n{names}\n{before_bar[0]}{halfway}{before_bar[1]}{whole}\n"
        text += (
            "                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95): 100%|██| 8/8\n"
        )
        text += "                   all        722       1444      0.989       0.99      0.993      0.681\n"
    return text + "\n30 epochs completed in 0.034 hours.\n"


# an evaluation, and the summary of an epoch
_ESPNET_RESULTS = (
    "[host] 2026-01-01 10:00:00,000 (trainer:243) INFO: {epoch1}epoch results: [train] iter_time=0.001, loss=9.9, "
    "grad_norm=9.9, optim0_lr0=9.9, time=1 minute and 42.6 seconds, total_count=75, [valid] loss=9.9, total_count=2\n"
    "[host] 2026-01-01 10:00:00,000 (trainer:184) INFO: {epoch1}/3epoch started. Estimated time to finish: 9 minutes"
)
_ESPNET = (
    "[host:0/2] 2026-01-01 10:00:00,000 (trainer:793) INFO: {epoch1}epoch:train:{in0}01-{in1}00batch:{updates} "
    "iter_time=0.003, forward_time=0.095, loss_ctc=5.5, loss_att=2.2, acc=4.0e-04, loss={loss}, backward_time=0.041, "
    "grad_norm={g}, clip=100.000, loss_scale=1.000, optim_step_time=0.010, optim0_lr0=6.250e-07, train_time=0.5"
)
_WENET_EVALUATION = (
    "2026-01-01 10:00:00,000 DEBUG CV Batch {epoch0}/100 loss 9.9 loss_att 9.9 loss_ctc 9.9 history loss 9.9 rank 0\n"
    "2026-01-01 10:00:00,000 INFO Epoch {epoch0} CV info cv_loss 9.9\n"
    "2026-01-01 10:00:00,000 INFO Epoch {epoch1} TRAIN info lr 9.9"
)
_WITHIN = {"step": "batch", "loss": "loss", "lr": "optim0_lr0", "gradient": "grad_norm", "epoch": "epoch"}

PRINTED = [
    Example(
        "WeNet on two devices",
        lines(
            "2026-01-01 10:00:00,000 DEBUG TRAIN Batch {epoch0}/{in0}00 loss {loss:.6f} loss_att 9.9 loss_ctc 9.9 "
            "lr 0.00032621 rank 0\n"
            "2026-01-01 10:00:00,010 DEBUG TRAIN Batch {epoch0}/{in0}00 loss 9.900000 loss_att 9.9 loss_ctc 9.9 "
            "lr 0.00032621 rank 1",
            before="2026-01-01 10:00:00,000 INFO Epoch 0 TRAIN info lr 4e-08\n",
            every=_WENET_EVALUATION,
        ),
        "WeNet log",
        {"step": "Batch", "loss": "loss", "lr": "lr"},
        steps=[step - 100 for step in HUNDREDS],
        epoch_length=1000,
        remark="30 rows are left out: 'rank' says that they are of other processes.",
    ),
    Example(
        "WeNet with gradient norms",
        lines(
            "2026-01-01 10:00:00,000 DEBUG TRAIN | steps/sec 4.000| Batch {epoch0}/{in1}00 loss {loss:.6f} "
            "lr 6.2500e-09 grad_norm {g:.6f} rank 0",
            every="2026-01-01 10:00:00,000 DEBUG CV | Batch {epoch0}/100 loss 9.9 history loss 9.9 rank 0\n"
            "2026-01-01 10:00:00,000 INFO Epoch {epoch0} | Step {tens} | CV info cv_loss 9.9",
        ),
        "WeNet log",
        {"step": "Batch", "loss": "loss", "lr": "lr", "gradient": "grad_norm"},
        steps=HUNDREDS,
        epoch_length=1000,
        gradient=GRADIENTS,
        remark="counts within epochs",
    ),
    Example(
        "ESPnet",
        lines(_ESPNET.replace("{updates}", ""), every=_ESPNET_RESULTS),
        "ESPnet log",
        _WITHIN,
        steps=HUNDREDS,
        epoch_length=1000,
        gradient=GRADIENTS,
        remark="counts within epochs",
    ),
    Example(
        "FunASR",
        lines(_ESPNET.replace("{updates}", "{tens}num_updates:"), every=_ESPNET_RESULTS),
        "ESPnet log",
        _WITHIN | {"step": "num_updates"},
        steps=[10 * step for step in ONE],
        gradient=GRADIENTS,
    ),
    Example(
        "YOLO",
        yolo_lines(
            "      Epoch    GPU_mem   box_loss   cls_loss   dfl_loss  Instances       Size",
            "    {t1:4d}/30      6.73G     {loss}          0          0         10        640: ",
        ),
        "output of YOLO",
        {"loss": "box_loss + cls_loss + dfl_loss", "epoch": "Epoch"},
        steps=ONE,
        unit="epochs",
        remark="The loss is the sum of 'box_loss', 'cls_loss', 'dfl_loss'.",
    ),
    Example(
        "YOLO, classification",
        yolo_lines(
            "      Epoch    GPU_mem       loss  Instances       Size",
            "    {t1:4d}/30         0G     {loss}         10        224: ",
            before_bar=("", "\n"),
        ),
        "output of YOLO",
        {"loss": "loss", "epoch": "Epoch"},
        steps=ONE,
        unit="epochs",
    ),
    Example(
        "YOLO of early versions",
        yolo_lines(
            "     Epoch   gpu_mem       box       obj       cls     total   targets  img_size",
            "    {t:4d}/29      2.8G    0.0639    0.0158    0.0096    {loss}        36       640: ",
        ),
        "output of YOLO",
        {"loss": "total_loss", "epoch": "Epoch"},
        unit="epochs",
    ),
]
