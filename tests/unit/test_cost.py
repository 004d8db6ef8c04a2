from __future__ import annotations

import pytest

from jobs.batch.cost import Stay, cost, node_seconds, union

PRICES = {"spot": 0.16, "on-demand": 0.48}


def test_a_node_that_held_several_actors_is_counted_once() -> None:
    stays = [Stay("a", "spot", 0, 60), Stay("a", "spot", 30, 90), Stay("a", "spot", 100, 110)]
    assert node_seconds(stays) == {("a", "spot"): 100}


def test_nodes_are_priced_by_their_market() -> None:
    stays = [Stay("a", "spot", 0, 3600), Stay("b", "spot", 0, 1800), Stay("c", "on-demand", 0, 3600)]
    found = cost(stays, prices=PRICES, n_rows=4_000_000)
    assert found.node_seconds == {"on-demand": 3600, "spot": 5400}
    assert found.usd_by_market == {"on-demand": pytest.approx(0.48), "spot": pytest.approx(0.24)}
    assert (found.usd, found.usd_per_million_rows) == (pytest.approx(0.72), pytest.approx(0.18))
    assert found.unpriced == ()


def test_a_market_without_a_price_is_named_and_not_guessed() -> None:
    found = cost([Stay("a", "reserved", 0, 60), Stay("b", "spot", 0, 3600)], prices=PRICES, n_rows=1)
    assert (found.unpriced, found.usd_by_market["reserved"]) == (("reserved",), None)
    assert found.usd == pytest.approx(0.16)


def test_no_rows_have_no_price_each() -> None:
    assert cost([], prices=PRICES, n_rows=0).usd_per_million_rows is None


def test_spans_are_joined_over_short_gaps_where_that_is_asked_for() -> None:
    spans = [(5.0, 6.0), (0.0, 2.0), (2.5, 3.0), (9.0, 8.0)]
    assert union(spans) == [(0, 2), (2.5, 3), (5, 6)]
    assert union(spans, gap_s=1) == [(0, 3), (5, 6)]
