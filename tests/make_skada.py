"""Makes `data/skada.npz`, rows aligned by skada 0.6.0 with POT 0.9.7.post1, for `transfer/test_alignment.py`.

skada is no dependency of the tests: it switches metadata routing on for the whole process.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skada._mapping import CORALAdapter, LinearOTMappingAdapter

rng = np.random.default_rng(0)
mixing = rng.normal(size=(2, 6, 6))
source = (rng.normal(size=(80, 6)) @ mixing[0] + 3).astype(np.float32)
target = (rng.normal(size=(50, 6)) @ mixing[1] - 1).astype(np.float32)
X = np.concatenate([source, target]).astype(np.float64)
sample_domain = np.array([1] * len(source) + [-2] * len(target))
y = np.zeros(len(X))
adapters = {
    "coral_auto": CORALAdapter(reg="auto"),
    "coral_0.2": CORALAdapter(reg=0.2),
    "linear_ot": LinearOTMappingAdapter(reg=1e-10),
}
aligned = {name: adapter.fit_transform(X, y, sample_domain=sample_domain)[:80] for name, adapter in adapters.items()}
np.savez(Path(__file__).parent / "data/skada.npz", source=source, target=target, **aligned)
