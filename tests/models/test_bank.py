"""A bank of rows: read, noted, written, kept."""

from __future__ import annotations

import pytest
import torch

from stillhouse.core.run import RunError
from stillhouse.models.bank import Bank, ClassMeans, items_of


def test_rows_are_read_as_they_were_until_they_are_written():
    bank = Bank(4, 2)
    first, other = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.full((2, 2), 9.0)
    bank.note(torch.tensor([2, 0]), first)
    assert bank.row(torch.tensor([2, 0]), other).tolist() == other.tolist()
    bank.write()
    assert bank.row(torch.tensor([0, 1]), other).tolist() == [[3.0, 4.0], [9.0, 9.0]]
    bank.write()  # nothing noted: nothing changes
    assert bank.met.tolist() == [True, False, True, False]


def test_the_last_word_on_an_item_counts():
    bank = Bank(3, 1)
    bank.note(torch.tensor([1, 0, 1]), torch.tensor([[1.0], [2.0], [3.0]]))
    bank.write()
    assert bank.rows.tolist() == [[2.0], [3.0], [0.0]]
    bank.note(torch.tensor([1]), torch.tensor([[4.0]]))
    bank.note(torch.tensor([1]), torch.tensor([[5.0]]))
    bank.write()
    assert float(bank.rows[1]) == 5.0


def test_it_is_saved_with_the_state():
    bank, again = Bank(3, 1), Bank(3, 1)
    bank.note(torch.tensor([2]), torch.tensor([[7.0]]))
    bank.write()
    again.load_state_dict(bank.state_dict())
    assert float(again.row(torch.tensor([2]), torch.zeros(1, 1))) == 7.0


def test_data_that_do_not_number_their_items_are_refused():
    with pytest.raises(RunError, match="Mine keeps something for every item"):
        items_of({"labels": torch.zeros(1)}, "Mine")


def test_means_of_classes_are_those_of_all_that_was_written():
    means, otherwise = ClassMeans(3, 2), torch.full((3, 2), 9.0)
    means.note(torch.tensor([1, -100, 1]), torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 1.0]]))
    means.note(torch.tensor([1]), torch.tensor([[0.5, 1.5]]))
    assert torch.equal(means.row(torch.tensor([1, 0, -100]), otherwise), otherwise)
    means.write()
    found = means.row(torch.tensor([1, 0, -100]), otherwise)
    assert torch.allclose(found, torch.tensor([[0.5, 2.5 / 3], [9.0, 9.0], [9.0, 9.0]])) and means.met.tolist() == [
        0.0,
        3.0,
        0.0,
    ]
