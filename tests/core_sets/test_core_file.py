"""How a core file shows itself."""

from tests.core_files import core_of
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.records import read_artefact


def test_one_line_and_a_table(tiny, tmp_path):
    norms = dict.fromkeys(f"model.layers.{layer}.{one}_layernorm.weight" for layer in range(4) for one in ("input",))
    rows = {"model.embed_tokens.weight": ((0, 3), (10, 12))}
    core: CoreFile = read_artefact(core_of(tiny("llama"), tmp_path / "math.core.json", {**rows, **norms}), CoreFile)
    assert (
        repr(core)
        == f"<CoreFile math: 5 of 39 entries core, {core.ratio_of_elements:.2%} of the elements, of {core.model.id}>"
    )
    page = core._repr_html_()
    assert "<td>model.embed_tokens.weight</td><td>rows 0-2, 10-11</td><td>240</td><td>1</td>" in page
    assert page.count("<tr>") == 6 and "more" not in page
