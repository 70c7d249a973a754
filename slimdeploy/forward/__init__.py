"""Slimming an ONNX file by forward passes alone: which tokens stay, and which weights fit them.

Neither torch nor the model's training code takes part: blocks of the graph are cut out and run by
ONNX Runtime over calibration images.

Code map:
    slimming        the whole of it as one function: dense graph and images in, slim graph out
    dynamic         the same where each image chooses its own tokens; predictor: what scores them
    search, choose  counts, and which tokens each layer keeps, last layer first
    impact, cover   what ranks the tokens; choices: their names
    views, maps     what that looks at: streams, and attention probabilities as an output
    refit, ridge    the weights behind the dropped tokens, solved anew block by block
    linear          the layers that are solved for: found in a graph, and replaced
    anatomy, cut    the tensors between which blocks lie, and graphs cut there
    running         parts of a graph run batch by batch (activations: `slimdeploy.store`)
    errors          how far the head's input is from the dense model's
"""
