"""What tests of loaded models share."""

from __future__ import annotations

import pytest
from torch.multiprocessing.reductions import StorageWeakRef

from skillpack_format.loaded.lending import Lender


@pytest.fixture
def alive(monkeypatch):
    """How many bytes of lent values were in memory, told at every loan."""
    storages, told = {}, []

    def read(self, name, lend=Lender.read):
        found = lend(self, name)
        storage = found.untyped_storage()
        storages[storage._cdata] = (StorageWeakRef(storage), found.nbytes)
        for key in [key for key, (each, _) in storages.items() if each.expired()]:
            del storages[key]
        told.append(sum(nbytes for _, nbytes in storages.values()))
        return found

    monkeypatch.setattr(Lender, "read", read)
    return told
