"""Rules of layer errors: what a layer adds to the errors of those before it."""

from __future__ import annotations

import numpy as np
import pytest

from edge.layers import Layer, LayerErrors, Place, most_sensitive

CHAIN = (
    Place("a", "Conv", ()),
    Place("moved", "Reshape", ("a",), can_be_kept=False),
    Place("b", "Gemm", ("moved",)),
)


def test_a_layer_adds_what_its_inputs_did_not_have() -> None:
    errors = LayerErrors(CHAIN)
    plain = np.array([-1.0, 1.0])  # a standard deviation of 1
    errors.add({"a": plain, "b": plain}, {"a": plain + 0.1, "b": plain + 0.3})
    first, second = errors.layers()
    assert (first.name, first.error, first.added) == ("a", pytest.approx(0.1), pytest.approx(0.1))
    assert (second.name, second.error, second.added) == ("b", pytest.approx(0.3), pytest.approx(0.2))


def test_an_error_that_shrinks_adds_nothing() -> None:
    errors = LayerErrors(CHAIN)
    plain = np.array([-1.0, 1.0])
    errors.add({"a": plain, "b": plain}, {"a": plain + 0.3, "b": plain + 0.1})
    assert [layer.added for layer in errors.layers()] == [pytest.approx(0.3), 0.0]


def test_rows_add_up() -> None:
    together, apart = LayerErrors(CHAIN), LayerErrors(CHAIN)
    rows, found = np.random.default_rng(0).normal(size=(2, 8, 3))
    together.add({"a": rows}, {"a": found})
    for row, answer in zip(rows, found, strict=True):
        apart.add({"a": row}, {"a": answer})
    assert apart.layers()[0].error == pytest.approx(together.layers()[0].error)


def test_layers_that_were_not_seen_or_never_vary_are_left_out_or_harmless() -> None:
    errors = LayerErrors(CHAIN)
    errors.add({"a": np.ones(4)}, {"a": np.ones(4) * 2})
    (layer,) = errors.layers()
    assert (layer.name, layer.error) == ("a", 0.0)


def test_the_most_sensitive_come_first_and_ties_in_the_order_of_the_graph() -> None:
    layers = [
        Layer(name, "Conv", 1.0, added) for name, added in (("a", 0.1), ("b", 0.3), ("c", 0.1), ("d", 0.2))
    ]
    assert most_sensitive(layers, n_layers=3) == ("b", "d", "a")
    assert most_sensitive(layers, n_layers=9) == ("b", "d", "a", "c")
