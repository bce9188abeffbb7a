"""What the novel and the shift study compare: every strategy has a grid, every row is a strategy's."""

from types import MappingProxyType

import pytest

from kindgene.studies.transfer_settings import RATED, RATES, SCALES, SHIFTED, transfer_settings
from kindgene.transfer.strategies import STRATEGIES


def test_every_strategy_has_a_grid():
    assert set(RATES) == set(STRATEGIES)
    for rates in RATES.values():
        assert len(set(rates)) in (3, 4)
        assert list(rates) == sorted(rates)


def test_rows_are_strategies_at_their_own_rank_or_at_kinds():
    for settings in SCALES.values():
        for row in (*settings.novel_rows, *settings.shift_rows):
            name, _, equal = row.partition("-")
            assert name in STRATEGIES
            assert equal in ("", "equal")
            assert not equal or name in RATED
    assert set(SHIFTED) == set(SCALES["mini"].shift_rows)


def test_a_scale_that_is_not_there():
    with pytest.raises(ValueError, match="no scale 'huge'; there is tiny, mini, full"):
        transfer_settings("huge")
    assert isinstance(SCALES, MappingProxyType)
