"""Whether this machine has the devices that a run asks for."""

import pytest
import torch

from klqlit.launching.devices import check_accelerator


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(cuda=..., mps=...)`: what torch sees."""

    def see(*, cuda=False, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return see


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "GPU"])
def test_a_gpu_that_is_not_there_is_refused(gpus, accelerator):
    gpus()
    with pytest.raises(ValueError, match=rf"trainer\.accelerator={accelerator}, .* give --trainer\.accelerator cpu"):
        check_accelerator(accelerator)


def test_what_is_there_is_taken(gpus):
    gpus(cuda=True)
    check_accelerator("cuda")
    check_accelerator("gpu")
    gpus(mps=True)
    check_accelerator("gpu")
    gpus()
    for accelerator in ("cpu", "auto"):
        check_accelerator(accelerator)
