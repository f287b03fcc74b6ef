"""Workspace buffers are reused, grow, and are ordinary tensors."""

import torch

from twinflow.runtime.attention.workspace import Workspace


def test_the_same_memory_is_taken_again() -> None:
    workspace = Workspace(torch.device("cpu"))
    first = workspace.take("scores", (4, 6))
    again = workspace.take("scores", (3, 5))
    assert again.shape == (3, 5)
    assert again.is_contiguous()
    assert again.data_ptr() == first.data_ptr()
    assert workspace.take("others", (4, 6)).data_ptr() != first.data_ptr()
    assert workspace.take("scores", (4, 6), torch.bfloat16).dtype is torch.bfloat16


def test_a_larger_shape_leaves_tensors_in_use_alone() -> None:
    workspace = Workspace(torch.device("cpu"))
    small = workspace.take("scores", (2,)).fill_(1.0)
    large = workspace.take("scores", (1000,)).fill_(2.0)
    assert small.tolist() == [1.0, 1.0]
    assert workspace.take("scores", (2,)).data_ptr() == large.data_ptr()


def test_tensors_taken_in_inference_mode_can_be_changed_outside() -> None:
    workspace = Workspace(torch.device("cpu"))
    with torch.inference_mode():
        tensor = workspace.take("scores", (3,))
    tensor.zero_().add_(1.0)
    assert tensor.tolist() == [1.0, 1.0, 1.0]
