"""Two computations at the same time, there and back, as if one had followed the other."""

import subprocess
import sys
import threading

import pytest
import torch

from klqlit.models.side_by_side import _openmp_pause, side_by_side


@pytest.fixture(autouse=True)
def _four_threads(set_threads):
    set_threads(4)


@pytest.fixture
def weights():
    return torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, -1.0], requires_grad=True)


def test_values_and_gradients_of_both(weights):
    a, b = weights
    x, y = side_by_side(lambda: a.square(), lambda: b.exp())
    torch.testing.assert_close(x, a.detach().square())
    torch.testing.assert_close(y, b.detach().exp())
    (x * y).sum().backward()
    torch.testing.assert_close(a.grad, 2 * a.detach() * b.detach().exp())
    torch.testing.assert_close(b.grad, a.detach().square() * b.detach().exp())


def test_gradients_are_added_to_those_there_are(weights):
    a, b = weights
    for _ in range(2):
        sum(side_by_side(lambda: 3 * a, lambda: 5 * b)).sum().backward()
    assert a.grad.tolist() == [6, 6]
    assert b.grad.tolist() == [10, 10]


def test_one_of_both_may_not_be_asked_for_its_gradient(weights):
    a, b = weights
    x, _ = side_by_side(lambda: 3 * a, lambda: 5 * b)
    x.sum().backward()
    assert a.grad.tolist() == [3, 3]
    assert not b.grad.any()


def test_frozen_weights_get_no_gradient(weights):
    a, b = weights
    x, y = side_by_side(lambda: 3 * a.detach(), lambda: 5 * b)
    (x + y).sum().backward()
    assert a.grad is None
    assert b.grad.tolist() == [5, 5]


def test_they_run_at_the_same_time_on_half_of_the_threads_each(weights):
    """Each waits for the other, forward and backward; one after the other would wait forever."""
    meeting, seen = threading.Barrier(2, timeout=30), []

    def meet(*_):
        meeting.wait()
        seen.append((threading.get_ident(), torch.get_num_threads()))

    def compute(weight):
        meet()
        result = 2 * weight
        result.register_hook(meet)
        return result

    x, y = side_by_side(lambda: compute(weights[0]), lambda: compute(weights[1]))
    (x * y).sum().backward()
    threads = {thread for thread, _ in seen}
    assert len(threads) == 2
    assert threading.get_ident() in threads
    assert [count for _, count in seen] == [2] * 4
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_is_raised_when_the_other_is_done(failing, weights):
    done = []

    def fine():
        torch.randn(300, 300) @ torch.randn(300, 300)
        done.append(True)
        return 2 * weights[0]

    def broken():
        raise RuntimeError("this one fails")

    with pytest.raises(RuntimeError, match="this one fails"):
        side_by_side(*((broken, fine) if failing == 0 else (fine, broken)))
    assert done
    assert torch.get_num_threads() == 4
    # The other thread is still there for the next two.
    assert side_by_side(lambda: weights[0] + 1, lambda: weights[1] + 1)[1].tolist() == [4, 0]


def test_autocast_holds_for_both():
    a, b = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = side_by_side(lambda: a @ a, lambda: b @ b)
    assert [x.dtype for x in found] == [torch.bfloat16] * 2
    assert [x.dtype for x in side_by_side(lambda: a @ a, lambda: b @ b)] == [torch.float32] * 2


def test_the_way_back_is_gone_once_only(weights):
    x, y = side_by_side(lambda: weights[0] ** 3, lambda: weights[1] ** 3)
    (x + y).sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        (x + y).sum().backward()
    assert weights[0].grad.tolist() == [3, 12]


HELPERS = """
import os

import torch

from klqlit.models.side_by_side import _threads


def of_this_process():
    return len(os.listdir("/proc/self/task"))


torch.set_num_threads(4)
x = torch.randn(1000, 1000)
x.exp()
helped = of_this_process()
with _threads(1):
    alone = of_this_process()
x.exp()
print(helped - alone, of_this_process() - alone)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or _openmp_pause() is None, reason="needs OpenMP 5 on Linux")
def test_threads_that_would_wait_in_a_loop_are_let_go():
    """Three help the one that starts an operator; they end, and others come when they are needed."""
    program = [sys.executable, "-c", HELPERS]
    found = subprocess.run(program, check=True, capture_output=True, text=True, timeout=120).stdout
    assert found.split() == ["3", "3"]
