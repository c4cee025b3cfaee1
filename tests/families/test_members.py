"""Members that are shared, that stand instead of others, that only some layers have; and the size of their heads."""

from dataclasses import replace
from itertools import product

import pytest

from tests.families.written import LLAMA, TINY_LLAMA, mine, write
from trace_transfer.errors import RulesError
from trace_transfer.families.application import apply_family
from trace_transfer.families.correspondence import LAYERS, build_correspondence, explain
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import read_inventory

TWO_KINDS = mine(LLAMA).replace("[mlp.gate_proj.weight,", '["mlp.gate_proj.weight?", "mlp.up_gate.weight?",')


def test_layers_of_two_kinds(tmp_path):
    """The principal is the first member that the layer has, and two members may have one role if no layer has both."""
    inventory = read_inventory(TINY_LLAMA)
    names = {"model.layers.1.mlp.gate_proj.weight": "model.layers.1.mlp.up_gate.weight"}
    renamed = replace(inventory, shapes={names.get(name, name): shape for name, shape in inventory.shapes.items()})
    family = load_families(write(tmp_path, TWO_KINDS)).families["mine"]
    gates = [unit for unit in apply_family(family, renamed).units if unit.component == "mlp.gate"]
    assert [(unit.layer, unit.name.split(".")[-2], unit.principal, unit.role) for unit in gates] == [
        (0, "gate_proj", True, "weight"),
        (1, "up_gate", True, "weight"),
    ]
    both = replace(inventory, shapes={**inventory.shapes, "model.layers.1.mlp.up_gate.weight": (96, 64)})
    with pytest.raises(RulesError, match=r"'mlp.gate_proj.weight' \(line 13\) and 'mlp.up_gate.weight' are of one role "
                       r"'weight' and both there; tell them apart with .* \(layers 1\)$"):  # fmt: skip
        apply_family(family, both)


def test_the_size_of_a_head(tmp_path):
    text = mine(LLAMA).replace("self_attn.q_proj.weight", "{name: self_attn.q_proj.weight, head: %s}")
    for written, size in (("2*vocab_size", 100), ("false", 0), ("7", 7)):
        anatomy = apply_family(
            load_families(write(tmp_path, text % written)).families["mine"], read_inventory(TINY_LLAMA)
        )
        assert {unit.head for unit in anatomy.units if unit.name.endswith("q_proj.weight")} == {size}
        assert {unit.head for unit in anatomy.units if unit.name.endswith("k_proj.weight")} == {None}


HEADS = '"self_attn.heads.{n}.weight", "self_attn.norms.{n}.weight?"'
NUMBERED = (
    mine(LLAMA)
    .replace("[self_attn.q_proj.weight,", f"[{HEADS},")
    .replace("[self_attn.o_proj.weight,", "[self_attn.o_proj.weight, %s,")
)


def test_a_name_for_several_tensors_that_are_alike(tmp_path):
    """All heads are principals, all norms have one role; `{n}` is a whole segment, and stands for a number."""
    plain = read_inventory(TINY_LLAMA)
    shapes = {name: shape for name, shape in plain.shapes.items() if not name.endswith("q_proj.weight")}
    for layer, number in product(range(2), range(11)):
        shapes[f"model.layers.{layer}.self_attn.heads.{number}.weight"] = (16, 64)
        shapes[f"model.layers.{layer}.self_attn.norms.{number}.weight"] = (16,)
    inventory = replace(plain, shapes=shapes)
    text = NUMBERED.replace(" %s,", "")
    anatomy = apply_family(load_families(write(tmp_path, text)).families["mine"], inventory)
    found = [unit for unit in anatomy.units if unit.layer == 1 and unit.component == "attention.query"]
    assert [(unit.name.split(".")[4:6], unit.principal, unit.role) for unit in found] == [
        ([kind, str(number)], kind == "heads", {"heads": "weight", "norms": "norm"}[kind])
        for number in range(11)
        for kind in ("heads", "norms")
    ]
    llama = apply_family(load_families().families["llama"], plain)
    graph = build_correspondence(llama, anatomy, [(0, 1)])
    (query,) = llama.units_of("model.layers.0.self_attn.q_proj.weight")
    assert [unit for unit, _ in graph.targets_of(query)] == found
    lines = [line for line in explain(graph) if "heads" in line.target or "norms" in line.target]
    assert [(line.section, line.target) for line in lines] == [
        (LAYERS, "self_attn.heads.{n}.weight"),
        (LAYERS, "self_attn.norms.{n}.weight"),
    ]
    assert "tensors (layer 0)" in [line.target for line in explain(graph)]
    back = build_correspondence(anatomy, llama, [(1, 0)])
    assert {unit.role for unit in back.dropped if unit in found} == {"norm"}
    other = replace(inventory, shapes={**shapes, "model.layers.0.self_attn.heads.x.weight": (16, 64)})
    with pytest.raises(RulesError, match=r"'model.layers.\{layer\}.self_attn.heads.x.weight' is in no component"):
        apply_family(load_families(write(tmp_path, text)).families["mine"], other)
