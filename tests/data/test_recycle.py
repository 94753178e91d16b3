"""Memory comes back when, and only when, nothing refers to it."""

from __future__ import annotations

import torch

from ibvit.data.recycle import recycled


def test_memory_comes_back():
    first = recycled((3, 5, 7))
    place = first.data_ptr()
    del first
    assert recycled((3, 5, 7)).data_ptr() == place


def test_a_view_a_list_or_a_graph_keeps_it():
    weight = torch.ones(2, 11, requires_grad=True)
    kept = recycled((13, 11)).fill_(2)
    out = kept @ weight.T  # the graph saves ``kept`` for the weight's gradient
    del kept
    views = [recycled((13, 11)).fill_(at)[1:] for at in range(3)]
    assert len({view.data_ptr() for view in views}) == 3
    out.sum().backward()
    assert (weight.grad == 26).all()
    assert [view.unique().tolist() for view in views] == [[0.0], [1.0], [2.0]]


def test_empty():
    assert recycled((0, 3, 4, 4)).shape == (0, 3, 4, 4)
