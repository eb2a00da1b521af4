# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Good images that were spoilt in many ways: each is refused by name, or it is known why it need not be."""

from __future__ import annotations

import json
import os

from corpus.layout import read_layout
from corpus.mutations import KINDS, case
from corpus.run import IMAGES, SEED, Corpus
from corpus.worker import CPU_LIMIT, MEMORY_LIMIT


def test_mutated_images(all_images, tmp_path, summary):
    configuration = tmp_path / "configuration.json"
    tmp_path.chmod(0o700)
    configuration.write_text(
        json.dumps(
            {
                "images": {name: str(path) for name, (path, _options) in all_images.items()},
                "restore": {name: options for name, (_path, options) in all_images.items()},
                "place": str(tmp_path),
                "seed": SEED,
                "count": IMAGES,
            }
        )
    )
    corpus = Corpus()
    corpus.run(configuration, os.cpu_count() or 1)
    summary += [*corpus.report(), corpus.summary()]
    assert corpus.failures == []
    assert corpus.total.total() == IMAGES
    if len(KINDS) * 4 <= IMAGES:
        assert [name for name, counts in corpus.counts.items() if not counts] == []
    assert 0 < corpus.peak < MEMORY_LIMIT
    assert 0 < corpus.slowest[0] < CPU_LIMIT


def test_a_case_is_always_the_same(all_images):
    layouts = {name: read_layout(path) for name, (path, _options) in all_images.items()}
    for number in range(0, 200, 7):
        kind, name, mutation = case(SEED, number, layouts)
        assert case(SEED, number, layouts) == (kind, name, mutation)
    assert case("another", 0, layouts)[1:] != case(SEED, 0, layouts)[1:]


def test_each_kind_says_why_it_is_harmless():
    assert [kind.name for kind in KINDS if kind.expect.value in ("harmless", "fitting") and not kind.why] == []
    assert len({kind.name for kind in KINDS}) == len(KINDS)
