"""Precision as graph passes: the file that goes to a compiler says itself what is computed how.

TensorRT 11 has no precision flags and no calibrators, so half precision is casts in the graph, and
int8 and fp8 are pairs of QuantizeLinear and DequantizeLinear around what is quantised.

Code map:
    options         what may be asked for
    quantize        the stage: checks, passes, postconditions
    roles           which node runs in half precision, which keeps float32, which follows its input
    streams         the residual stream, by structure
    products        matrix products with stored weights, and which of them may be quantised
    cast_low        half precision: the pass
    insert_qdq      QuantizeLinear and DequantizeLinear: the pass
    unfold_patches  a patch embedding as a matrix product, for runtimes that quantise those
    smooth          outliers moved from activations into weights, without changing the result
    emulate         bfloat16 for a runtime that has none: the same rounding
    state           what a graph's precision is, as read back from it
    calibration     representative images: an .npz file or a folder
    observe         run a graph and look at its tensors; overflow looks for what float16 cannot hold
    ranges          what was found, in a file bound to the model (records: its parts)
    thresholds      where to clip
"""
