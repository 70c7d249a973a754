"""The matrix of families, exporters and forms: what slimdeploy does with every kind of file.

families   small random models of every family
exporters  how each is written as an ONNX file, and what may have been done to that file
cells      one measurement: the slim graph against the masked dense graph
__main__   the command that measures all cells and writes JSON and Markdown
"""
