"""The table of published families in docs/weights.md is what comes out when they are tried."""

import pytest
from families import PAGE, TRIED, row, table


@pytest.mark.parametrize("name", TRIED)
def test_a_family_goes_in_and_out_as_the_docs_say(name):
    line = table([row(name)]).splitlines()[-1]
    assert line in PAGE.read_text()
    assert "| no |" not in line
