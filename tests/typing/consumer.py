"""What a type checker sees of actstore: this file is checked by mypy, not run (tests/test_typing.py)."""

from typing import Any, assert_type

import actstore
import numpy as np
from numpy.typing import NDArray

store = actstore.open("run.act")
assert_type(store, actstore.Store)
site = store["resid"]
assert_type(site, actstore.Site)
for name, each in store.items():
    assert_type(name, str)
    assert_type(each, actstore.Site)
assert_type(site.select(layers=6, rows=[1, 2]), actstore.Site)
assert_type(site.select(row_ids=[1, 2]), actstore.Site)
assert_type(site.ids, list[str])
assert_type(site.offsets, NDArray[np.int64])
assert_type(site[1:3, 6], NDArray[Any])

hits = site.search(np.ones(4), k=3, metric="cosine", combine="sum")
assert_type(hits, actstore.Hits)
assert_type(hits[0], list[actstore.Hit])
assert_type(hits[:2], actstore.Hits)
assert_type(hits.scores, NDArray[np.float32])
assert_type(site.maxsim([np.ones((2, 4))]), actstore.Hits)
assert_type(actstore.search(np.ones((3, 4)), np.ones(4)), actstore.Hits)

docs = site.pool("mean", layers=[1, 12])
assert_type(docs, actstore.Site)
assert_type(docs.neighbors(k=2), actstore.Neighbors)
assert_type(site.moments(), actstore.MomentsResult)
assert_type(site.cross_moments(site, lag=1), actstore.CrossMoments)

assert_type(site.scan(actstore.Moments()), actstore.MomentsResult)
assert_type(site.scan([actstore.Summary(), actstore.Summary()]), list[actstore.SummaryResult])
assert_type(
    site.scan((actstore.Summary(), actstore.Moments())), tuple[actstore.SummaryResult, actstore.MomentsResult]
)
assert_type(site.scan({"a": actstore.Histogram()}), dict[str, actstore.HistogramResult])


class Count:
    def new(self) -> int:
        return 0

    def update(self, state: int, block: actstore.Block) -> int:
        return state + len(block.rows)

    def merge(self, a: int, b: int) -> int:
        return a + b

    def finish(self, state: int) -> str:
        return str(state)


assert_type(site.scan(Count()), str)
assert_type(actstore.Whitener(n_components=8).fit(site), actstore.Whitener)
assert_type(store.whiteners["w"], actstore.Whitener)
assert_type(actstore.from_array(np.ones((2, 3)), [0, 2], ids=["a"]), actstore.Site)
assert_type(actstore.__version__, str)
