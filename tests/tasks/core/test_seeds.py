"""Derived seeds: pinned for ever, different for different places of a run."""

import pytest

from tasks.core.seeds import derive_seed


@pytest.mark.parametrize(
    ("run_seed", "path", "sha256_first_16_digits"),
    [  # printf 0/policy | sha256sum
        (0, ("policy",), "feda5f2dac963d12"),
        (7, ("generation", 12), "8b6ae4d0df8c6cce"),
    ],
)
def test_a_seed_is_the_first_63_bits_of_the_sha256_of_its_path(
    run_seed: int, path: tuple[str | int, ...], sha256_first_16_digits: str
) -> None:
    assert derive_seed(run_seed, *path) == int(sha256_first_16_digits, 16) // 2


def test_no_two_places_of_a_run_and_no_two_runs_share_a_seed() -> None:
    stages, steps, runs = ("policy", "generation", "training", "epoch"), range(100), range(10)
    seeds = {derive_seed(run, stage, step) for run in runs for stage in stages for step in steps}
    assert len(seeds) == 10 * 4 * 100
    assert derive_seed(1, 11) != derive_seed(11, 1)  # "1/11" is not "11/1"


def test_seeds_fill_the_range_of_a_signed_64_bit_column() -> None:
    seeds = [derive_seed(0, i) for i in range(1000)]
    assert min(seeds) >= 0
    # 1,000 uniform draws below 2**63: the largest is below 0.98 * 2**63 with probability 0.98**1000 = 2e-9
    assert 0.98 * 2**63 < max(seeds) < 2**63
