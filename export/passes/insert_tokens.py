"""`lora.tokens`: embeddings for token ids from vocab_size on (textual inversion)."""

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from lora_edge.errors import ExportError
from lora_edge.slots import TOKENS, SlotTable

EMBEDDING = "text_model.embeddings.token_embedding.weight"


def insert_tokens(model: ir.Model, table: SlotTable) -> None:
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

    head = Tape(graph)
    count = head.initializer(ir.tensor(np.array(vocab, dtype=np.int64), name="const.vocab_size"))
    zero = head.initializer(ir.tensor(np.array(0, dtype=np.int64), name="const.zero"))
    blank = head.initializer(ir.tensor(np.zeros((1, dim), dtype=np.float32), name="const.blank_token"))
    known = head.op("Less", [ids, count])
    base_ids = head.op("Where", [known, ids, zero])
    # Row 0 of the added table is a blank: the lookup of ids that are the base's lands there.
    added_ids = head.op("Where", [known, zero, head.op("Add", [head.op("Sub", [ids, count]), _one(head)])])
    nodes = list(head.nodes)
    for user, index in list(ids.uses()):
        if user not in nodes:
            user.replace_input_with(index, base_ids)
    first = graph[0]
    for node in nodes:
        graph.remove(node)
    graph.insert_before(first, nodes)

    tail = Tape()
    table_of_added = tail.op("Concat", [blank, tokens], attributes={"axis": 0})
    added = tail.op("Gather", [table_of_added, added_ids], attributes={"axis": 0})
    axis = graph.initializers["const.last_axis"]
    embedded = tail.op("Where", [tail.op("Unsqueeze", [known, axis]), gather.outputs[0], added])
    embedded.shape, embedded.dtype = gather.outputs[0].shape, gather.outputs[0].dtype
    for user, index in list(gather.outputs[0].uses()):
        if user not in tail.nodes:
            user.replace_input_with(index, embedded)
    graph.insert_after(gather, list(tail.nodes))


def _one(tape: Tape) -> ir.Value:
    tape.initializer(ir.tensor(np.array([2], dtype=np.int64), name="const.last_axis"))
    return tape.initializer(ir.tensor(np.array(1, dtype=np.int64), name="const.one"))
