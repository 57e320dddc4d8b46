"""What a step's line says of its credit."""

from flows.progress import branches


def test_the_line_names_branch_tokens_where_groups_part_and_what_td_moves():
    assert branches({"branch_tokens": 2.046, "divergence": 3.25, "td_share": 0.184}) == (
        "branch tokens 2.05 from depth 3.2, td 18%"
    )


def test_groups_that_never_part_have_no_depth():
    assert branches({"branch_tokens": 0.0, "divergence": None, "td_share": 0.0}) == (
        "branch tokens 0.00 from depth -, td 0%"
    )
