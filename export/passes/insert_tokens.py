"""`lora.tokens`: embeddings for token ids from vocab_size on (textual inversion)."""

import onnx_ir as ir
from onnx_ir.tape import Tape

from lora_edge.errors import ExportError
from lora_edge.export.constants import Constants
from lora_edge.export.variants import Variant
from lora_edge.slots import TOKENS, SlotTable

EMBEDDING = "text_model.embeddings.token_embedding.weight"


def insert_tokens(model: ir.Model, table: SlotTable, variant: Variant) -> None:
    """Look ids below vocab_size up in the base, and the others in `lora.tokens` [n, dim].

    What else reads the ids (pooling looks for the end-of-text token) sees id 0 in place of the added ones. Graphs
    without a token embedding are left alone. An id beyond the given tokens fails in the graph.

    Raises:
        ExportError: the embedding is not one Gather.
    """
    graph = model.graph
    embedding = graph.initializers.get(EMBEDDING)
    if embedding is None:
        return
    assert embedding.shape is not None
    gathers = list(embedding.consumers())
    if [node.op_type for node in gathers] != ["Gather"]:
        raise ExportError("the token embedding of the text encoder is not looked up in one place")
    gather = gathers[0]
    ids = graph.inputs[0]
    vocab, dim = (int(size) for size in embedding.shape.numpy())
    tokens = ir.Value(name=TOKENS, shape=ir.Shape(["tokens_added", dim]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(tokens)
    constant = Constants(graph)

    head = Tape()
    known = head.op("Less", [ids, constant.scalar(vocab)])
    base_ids = head.op("Where", [known, ids, constant.scalar(0)])
    # Row 0 of the added table is a blank, where the lookup of the base's own ids lands.
    added_ids = head.op("Where", [known, constant.scalar(0), head.op("Sub", [ids, constant.scalar(vocab - 1)])])
    for user, index in list(ids.uses()):
        if user not in head.nodes:
            user.replace_input_with(index, base_ids)
    graph.insert_before(graph[0], list(head.nodes))

    tail = Tape()
    plain = gather.outputs[0]
    table_of_added = tail.op("Concat", [constant.zeros(1, dim), tokens], attributes={"axis": 0})
    added = tail.op("Gather", [table_of_added, added_ids], attributes={"axis": 0})
    embedded = tail.op("Where", [tail.op("Unsqueeze", [known, constant(2)]), plain, added])
    embedded.shape, embedded.dtype = plain.shape, plain.dtype
    for user, index in list(plain.uses()):
        if user not in tail.nodes:
            user.replace_input_with(index, embedded)
    graph.insert_after(gather, list(tail.nodes))
