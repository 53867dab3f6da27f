"""The table of published families in docs/weights.md is what comes out when they are tried."""

import pytest
from families import PAGE, TRIED, line, row


@pytest.mark.parametrize("name", TRIED)
def test_a_family_goes_in_and_out_as_the_docs_say(name):
    tried = line(row(name).cells())
    assert tried in PAGE.read_text()
    assert "| no |" not in tried
