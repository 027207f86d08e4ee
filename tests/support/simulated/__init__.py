"""CUDA and TensorRT in memory: the documented interfaces, held to their documented rules.

They are implementations and not recordings: memory is bytes, streams are queues, a plan is an ONNX
model that onnxruntime runs when its stream gets to it. What breaks a documented rule raises
:class:`~tests.support.simulated.cuda.Misuse`, which nothing of ours catches.
"""
