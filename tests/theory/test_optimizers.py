import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import theory


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.floats(1e-4, 10), st.floats(0, 1), st.integers(0, 1000))
def test_sgd_is_that_of_torch(lr, wd, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    ours = weights.detach().numpy().copy()
    optimizer = torch.optim.SGD([weights], lr=lr, weight_decay=wd)
    for _ in range(5):
        gradient = torch.randn(7, generator=generator, dtype=torch.float64)
        weights.grad = gradient.clone()
        optimizer.step()
        ours = theory.SGD().update(ours, gradient.numpy(), lr, wd)
    np.testing.assert_allclose(ours, weights.detach().numpy(), rtol=1e-12)


def test_optimizers_are_values():
    assert theory.SGD() == theory.SGD()
    assert hash(theory.SGD()) == hash(theory.SGD())
    assert repr(theory.SGD()) == "SGD()"
