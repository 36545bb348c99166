import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """Small tensors: a second thread only costs, and the tests of other workers want it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
