"""The law of Muon is that of one matrix: a group of one has it, a group of several has none."""

import pytest
import torch

import theory
from empirical.measures._group_settings import setting_of_group, settings_of_weights


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_muon(scale):
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (3, 4), (6, 2))]
    optimizer = torch.optim.Muon(weights, lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn=scale)
    settings = settings_of_weights([optimizer], weights)
    for weight, setting in zip(weights, settings, strict=True):
        alone, reason = setting_of_group([setting], [1.0])
        assert (alone.lr, alone.wd, reason) == (0.1, 0.2, "")
        assert alone.rule == theory.Muon(*weight.shape, momentum=0.9, scale=scale)
        assert theory.optimizers.check_optimizer(alone.optimizer_text(12)) == alone.rule
    for members in ((0, 1), (0, 2)):
        together, reason = setting_of_group([settings[number] for number in members], [1.0, 1.0])
        assert (together.rule, together.name, reason) == (None, "Muon(momentum=0.9)", "")
