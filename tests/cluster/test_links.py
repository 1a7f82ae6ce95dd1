"""Links between real worker processes, through shared memory and through TCP."""

from __future__ import annotations

import pytest

import nbflow as nf
import nbflow_workers
from nbflow.session import Session
from nbflow.transport import CLIENT
from nbflow_workers.launchers.local import LocalLauncher

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(("flags", "via"), [((), "shared memory"), (("--no-shm",), "tcp")])
def test_links_are_measured_once_and_again_for_those_who_come(flags: tuple[str, ...], via: str) -> None:
    with nbflow_workers.local(workers=2, launcher=LocalLauncher(flags=flags)) as cluster:
        assert cluster.links(measure=False) == {}
        found = cluster.links()
        first, second = "/job:worker/task:0", "/job:worker/task:1"
        assert set(found) == {(CLIENT, first), (CLIENT, second), (first, second)}
        assert found[first, second].via == via
        assert 1e7 < found[first, second].bytes_per_s < 1e12
        assert cluster.links() == cluster.links(measure=False) == found
        cluster.scale(3)
        more = cluster.links()
        assert len(more) == 6
        assert more[first, second] == found[first, second]
        cluster.scale(1)
        assert set(cluster.links()) == {(CLIENT, first)}


def test_a_session_places_by_the_links_it_has() -> None:
    with nbflow_workers.local(workers=2) as cluster, nf.Graph().as_default() as graph:
        tops = []
        for _ in range(2):
            x = nf.random.normal((400, 400))
            for _ in range(6):
                x = x @ x
            tops.append(nf.sum(x))
        total = tops[0] + tops[1]
        with Session(cluster, graph, profile="off") as session:
            table = session.placement([total])
        assert cluster.links(measure=False)
        assert "measured client – worker:0" in table.links
        assert "assumed" not in table.links
