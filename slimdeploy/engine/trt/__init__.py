"""Everything that calls TensorRT: one adapter over `tensorrt` 10.3 to 11 and `tensorrt_rtx` 1.

Code map:
    bindings   which package, which version, and why it cannot be loaded
    api        every attribute of the bindings that this package calls, held to the real ones
    events     TensorRT's log and its progress, caught
    parse      an ONNX file as a network; what the network says of its blocks
    build      a network as an engine; the engine's layers read back
    runner     an engine behind the engine protocol

Precision lies in the ONNX file: every network is strongly typed and no calibrator is used, which
TensorRT 11 demands and 10 allows.
"""
