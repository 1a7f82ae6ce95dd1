"""What the tests of datasets share."""

from __future__ import annotations

from typing import Any

from nbflow.data import Dataset
from nbflow.data.build import Environment
from nbflow.data.iterator import DataIterator, advanced, rewound
from nbflow.data.snapshot import pack, unpack
from nbflow.errors import EndOfData


def drain(iterator: DataIterator) -> list[list[Any]]:
    """All that is left, as lists; the iterator is closed."""
    found = []
    try:
        while True:
            found.append([a.tolist() for a in iterator.next()])
    except EndOfData:
        return found
    finally:
        iterator.close()


def elements(dataset: Dataset) -> list[dict[str, Any]]:
    """All elements, as lists by name."""
    return [{name: array.tolist() for name, array in e.items()} for e in dataset]


def check_resumes(dataset: Dataset) -> None:
    """From every place, through bytes, into an iterator that knows nothing."""
    straight = drain(DataIterator(dataset.tree, Environment("it", 3)))
    assert len(straight) > 2
    going = DataIterator(dataset.tree, Environment("it", 3))
    for done in range(len(straight) + 1):
        kept = pack(going.export_state())
        fresh = DataIterator(dataset.tree, Environment("it", 3))
        fresh.import_state(unpack(kept))
        assert fresh.position == done
        assert drain(fresh) == straight[done:], done
        if done < len(straight):
            going.next()
    going.close()


def check_rewinds(dataset: Dataset, keep: int) -> None:
    """From every place back by up to `keep` elements, through bytes, into one that splits its batches otherwise."""
    straight = drain(DataIterator(dataset.tree, Environment("it", 3)))
    going = DataIterator(dataset.tree, Environment("it", 3), keep=keep)
    for done in range(len(straight) + 1):
        kept = pack(going.export_state())
        for back in range(min(keep, done) + 1):
            state = rewound(unpack(kept), back)
            assert state is not None, (done, back)
            fresh = DataIterator(dataset.tree, Environment("it", 3), keep=keep)
            fresh.import_state(state)
            assert fresh.position == done - back
            # Saved again before anything was taken: nothing is lost by it.
            again = DataIterator(dataset.tree, Environment("it", 3))
            again.import_state(unpack(pack(fresh.export_state())))
            assert drain(fresh) == drain(again) == straight[done - back :], (done, back)
        ahead = DataIterator(dataset.tree, Environment("it", 3))
        ahead.import_state(unpack(pack(advanced(unpack(kept), 2))))
        assert ahead.position == done + 2
        assert drain(ahead) == straight[done + 2 :], done
        if done < len(straight):
            going.next()
    going.close()
