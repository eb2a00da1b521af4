# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import (
    BlockGraph,
    BlockNode,
    parse_drives,
    parse_nodes,
)

NODES = [
    {"node-name": "top", "drv": "qcow2", "file": "top.qcow2"},
    {"node-name": "top-file", "drv": "file", "file": "top.qcow2"},
    {"node-name": "data", "drv": "file", "file": "data.raw"},
    {"node-name": "base", "drv": "raw", "file": "base.img"},
    {"node-name": "base-file", "drv": "file", "file": "base.img"},
]
EDGES = [("top", "backing", "base"), ("top", "data-file", "data"), ("top", "file", "top-file")]
EDGES += [("base", "file", "base-file")]


def debug_graph() -> dict:
    numbers = {node["node-name"]: number for number, node in enumerate(NODES, 1)}
    nodes = [{"id": number, "type": "block-driver", "name": name} for name, number in numbers.items()]
    nodes.append({"id": 99, "type": "block-backend", "name": "virtio0"})
    edges = [{"parent": numbers[parent], "name": edge, "child": numbers[child]} for parent, edge, child in EDGES]
    edges.append({"parent": 99, "name": "root", "child": 1})
    return {"nodes": nodes, "edges": edges}


def nodes_with_children() -> list[dict]:
    found = []
    for node in NODES:
        children = [{"child": edge, "node-name": child} for parent, edge, child in EDGES if parent == node["node-name"]]
        found.append({**node, "children": children})
    return found


def layers(nodes: dict[str, BlockNode], name: str = "top") -> list[tuple[str, str]]:
    return [(layer.node.name, layer.format) for layer in BlockGraph((), nodes).layers(name)]


def test_edges_of_either_kind_give_the_same_chain():
    expected = [("top-file", "qcow2"), ("data", "qcow2"), ("base-file", "raw")]
    assert layers(parse_nodes(NODES, debug_graph())) == expected
    assert layers(parse_nodes(nodes_with_children(), None)) == expected


def test_without_edges_the_node_is_a_dead_end():
    assert layers(parse_nodes(NODES, None)) == [("top", "raw")]


def test_node_that_is_gone_between_two_answers():
    assert layers({}, "top") == [("top", "raw")]


def test_children_of_a_quorum_are_in_the_order_of_their_numbers():
    children = tuple((f"children.{number}", f"c{number}") for number in (10, 9, 2))
    nodes = {"q": BlockNode("q", "quorum", "", children)}
    nodes.update({name: BlockNode(name, "file", name) for _edge, name in children})
    assert [name for name, _format in layers(nodes, "q")] == ["c2", "c9", "c10"]


def test_graph_that_runs_in_circles_ends():
    nodes = {name: BlockNode(name, "raw", "", (("file", other),)) for name, other in (("a", "b"), ("b", "a"))}
    assert layers(nodes, "a") == []


def test_drives():
    (full, empty) = parse_drives(
        [
            {"device": "virtio0", "qdev": "/q", "inserted": {"node-name": "top", "ro": True}},
            {"device": "", "qdev": "cd0", "tray_open": True},
        ]
    )
    assert (full.backend, full.node, full.read_only) == ("virtio0", "top", True)
    assert (empty.qdev, empty.node, empty.read_only) == ("cd0", "", False)
