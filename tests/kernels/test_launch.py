"""What launches share: the ticket, the number of programs, and whether kernels are interpreted."""

import pytest
import torch

from pathmoe_kernels.launch import interpreting, num_persistent_programs, ticket

CPU = torch.device("cpu")


def test_the_tests_run_in_the_interpreter() -> None:
    assert interpreting()


def test_there_is_one_ticket_and_it_starts_at_zero() -> None:
    assert ticket(CPU) is ticket(CPU)
    assert ticket(CPU).dtype == torch.int32
    assert ticket(CPU).tolist() == [0]


@pytest.mark.parametrize(("num_chunks", "programs"), [(0, 1), (1, 1), (2, 2), (3, 3), (100, 3)])
def test_no_more_programs_than_chunks_but_one_that_always_scans(num_chunks: int, programs: int) -> None:
    assert num_persistent_programs(num_chunks, CPU) == programs
